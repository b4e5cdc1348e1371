"""A training that is started as `python -m package`."""
