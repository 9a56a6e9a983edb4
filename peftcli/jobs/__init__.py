"""Whole jobs on runs and adapters: open, evaluate, generate, merge, convert, inspect, compare, try out.

Each job is a function that a command calls and a test can; it asks methods, tasks and formats for their facts.
"""
