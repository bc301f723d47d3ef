"""The library: data order, model, trainer, recorder, detectors. Importing it loads no torch."""

__version__ = "0.1.0"
