"""Stages on things in hand: networks, data sets and augmentations of a caller in Python, as the tables of an experiment."""
