"""What made the gradient norm of a batch spike."""
