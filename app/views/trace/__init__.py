"""What inside one step went wrong?"""

TITLE = "Microscope"
ORDER = 5
PATH = "microscope"
