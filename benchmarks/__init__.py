"""What is measured: accuracy, training speed and inference speed; and the pages that show it."""
