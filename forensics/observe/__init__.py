"""What is measured while a step runs; nothing here enters the computation."""
