"""Look inside one step: its trace, its update, its attention, and what is kept of them."""
