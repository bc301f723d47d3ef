"""The model families: names and shapes to and from Hugging Face."""
