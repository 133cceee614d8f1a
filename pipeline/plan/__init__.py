"""The cost of an experiment before it is run: bytes, files, teacher passes, hours."""
