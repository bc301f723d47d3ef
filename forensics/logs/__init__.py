"""Logs that other trainers and trackers wrote, read as metrics by step."""
