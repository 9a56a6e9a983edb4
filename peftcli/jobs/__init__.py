"""Whole jobs on a finished run or adapter: open, evaluate, generate, merge, inspect."""
