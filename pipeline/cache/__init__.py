"""Stage one: teachers run over a transfer set, their logits kept in a store."""
