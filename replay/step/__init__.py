"""Look inside one step: its trace, its update, its attention, and the artifacts that are kept of it."""
