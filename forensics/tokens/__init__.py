"""Under-trained tokens: what they look like, what the model saw of them, why, and how sure."""
