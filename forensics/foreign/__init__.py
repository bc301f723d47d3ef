"""Runs made elsewhere, brought in: from then on a run as any other, whose replays are to tolerance.

import_run("peers/olmo1/checkpoints", Path("runs"), "olmo", ImportOptions(data=…))  → ImportedRun
"""
