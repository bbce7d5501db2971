"""Training scripts the way people write them, to measure against; they use nothing of this project."""
