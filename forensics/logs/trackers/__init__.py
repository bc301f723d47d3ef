"""The way out: the rows of `steps`, written to trackers while a run trains."""
