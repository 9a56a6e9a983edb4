"""The record of a run (typed facts) and its renderings: HTML, Markdown, model card, tables, plots.

Text is made from facts and never read back. `record` is the schema of run.json; a fact that a rendering needs is put
there, or handed in, by who knows it: this room is below tasks, metrics and methods, and names none.
"""
