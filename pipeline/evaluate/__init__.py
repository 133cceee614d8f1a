"""Scores of teachers and students: errors, likelihood, calibration, coverage by specialists."""
