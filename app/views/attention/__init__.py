"""What did an attention head do before, at and after a step?"""

TITLE = "Attention"
ORDER = 4
