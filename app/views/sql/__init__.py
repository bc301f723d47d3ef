"""Ask anything: named queries, and one SELECT of your own."""

TITLE = "SQL"
ORDER = 10
