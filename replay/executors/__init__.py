"""Run independent tasks: on this machine's processes."""
