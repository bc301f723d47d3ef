"""The one training loop: state, advance, schedule, checkpoints, runs."""
