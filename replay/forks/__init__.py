"""Forks: the fork file, the plan, the arms in lock-step, the resumption of an interrupted fork."""
