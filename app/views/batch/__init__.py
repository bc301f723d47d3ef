"""Which text and which tokens did a step read?"""

TITLE = "Batch"
ORDER = 3
