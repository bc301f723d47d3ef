"""Which tokens has the model hardly trained?"""

TITLE = "Tokens"
ORDER = 8
