"""Which of the settings makes the difference?"""

TITLE = "Ablations"
ORDER = 9
