"""What is measured: lockstep, training speed, inference, many seeds."""
