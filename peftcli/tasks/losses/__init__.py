"""Losses that tasks share."""
