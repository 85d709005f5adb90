"""Whole runs: from a config to a run directory, and back to predictions."""
