"""Places that hold a store: local folders to read and write, remote ones to read."""
