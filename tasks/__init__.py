"""What a worker does with one message, and what beat has done from time to time."""
