"""A capture rewritten in a smaller encoding."""
