"""Encodings of logits: floats, error budgets and top-k, and how far each is from its source."""
