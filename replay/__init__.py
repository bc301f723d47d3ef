"""Replay: re-run a window of training exactly, or with a difference, and compare."""
