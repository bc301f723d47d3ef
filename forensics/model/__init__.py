"""One transformer for every family, its names, its initialisation and its lens."""
