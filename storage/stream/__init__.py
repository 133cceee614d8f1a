"""Streams: the order of an epoch, its batches, and the windows that they are read through."""
