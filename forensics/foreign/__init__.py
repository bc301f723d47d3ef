"""Runs that other trainers made, brought in: from then on they are runs like all others."""
