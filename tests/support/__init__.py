"""Stores, experiments, servers and child processes that the tests share."""
