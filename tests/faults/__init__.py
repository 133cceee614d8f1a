"""What may go wrong with a store, done to it on purpose: each module a kind of fault (docs/reliability.md)."""
