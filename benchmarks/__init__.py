"""Measurements, one command each: python -m benchmarks.NAME."""

import forensics  # noqa: F401  before torch is loaded: how long waiting threads spin is set here
