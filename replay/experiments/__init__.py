"""Experiments of many replays: scans, sweeps, matrices of data and state, divergence rates."""
