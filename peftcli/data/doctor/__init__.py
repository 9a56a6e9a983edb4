"""Looks for what makes a run learn nothing or the wrong thing: one module a check, found by its name.

`base` says what a check may look at (rows as read, all rows of a source, all encoded rows) and what a finding is; `run`
applies those that the recipe leaves on. How to add one: README.md, "Add a data check".
"""
