"""Where does this text stand, and when was it read?"""

TITLE = "Find text"
ORDER = 10
