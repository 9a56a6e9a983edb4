"""Freeze tuning: the last blocks, or named modules."""
