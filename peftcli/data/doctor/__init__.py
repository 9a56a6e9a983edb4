"""Looks for what makes a run learn nothing or the wrong thing: one module a check, found by its name."""
