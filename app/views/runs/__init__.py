"""Which runs are healthy, and what forked where?"""

TITLE = "Runs"
ORDER = 1
