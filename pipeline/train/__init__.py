"""Stage three: students trained from a store."""
