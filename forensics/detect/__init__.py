"""Detectors: pure functions over recorded columns, and their live twins. Nothing here loads
torch.
"""
