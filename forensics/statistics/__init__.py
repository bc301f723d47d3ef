"""The recorded statistics: one entry each, from which column, merge and documentation follow.

    heads.py     what attention does, by query head
    layers.py    what flows through a block, by layer
    tensors.py   what an update does, by parameter tensor

To add a statistic, add an entry. Recorder, schema, roll-ups, probes and docs/tables.md take it
from there; docs/formulas.md defines the number. Nothing here loads torch: the schema reads the
entries, and they work on tensors through their methods.
"""
