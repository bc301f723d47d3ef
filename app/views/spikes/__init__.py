"""Which spike, data or state, and what moved first?"""

TITLE = "Spikes"
ORDER = 2
