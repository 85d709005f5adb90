"""Losses: pure functions, one value per example or one per batch."""
