"""Batches of a store as tensors, on the device that uses them."""
