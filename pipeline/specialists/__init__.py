"""Specialists: a network for each confusable set, trained, captured back into the store."""
