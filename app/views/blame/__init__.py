"""Which data made the spike? Sequences ranked by influence, removed by replay."""

TITLE = "Blame"
ORDER = 7
