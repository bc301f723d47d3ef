"""Is it an effect or chaos? Forks beside their null forks."""

TITLE = "Forks"
ORDER = 6
