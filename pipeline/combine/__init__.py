"""A generalist and its specialists, combined into one more capture."""
