"""Charts as data-free templates: one module per family of pages, `theme` for what they share."""
