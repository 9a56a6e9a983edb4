"""Whole jobs on runs and adapters: assemble, score, open, evaluate, generate, merge, convert, inspect, smoke.

Each job is a function that a command calls and a test can; it asks methods, tasks and formats for their facts.
"""
