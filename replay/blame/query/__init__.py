"""Influence on a question that need not be a spike: the loss of any text at any state."""
