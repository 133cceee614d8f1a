"""Verification and repair of stores, and the trial of a file system."""
