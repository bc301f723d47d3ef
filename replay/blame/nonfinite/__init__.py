"""What made a step not finite: the first tensor, token and position, and which sequences."""
