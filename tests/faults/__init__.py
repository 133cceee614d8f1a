"""Faults of a store, done to it on purpose: each module a kind of fault (docs/reliability.md)."""
