"""Compare trajectories: distances, probe sequences, null tests, loss barriers, run differences."""
