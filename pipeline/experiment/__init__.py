"""Experiment files: the tables, their checks, and the document that holds them."""
