"""What one training step is made of: the state and the arithmetic its bits depend on."""
