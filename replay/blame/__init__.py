"""Blame: from a spike to the step, sequence, document, token and tensor that made it."""
