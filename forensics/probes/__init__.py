"""One metric over all checkpoints of a run: built in, or the user's function."""
