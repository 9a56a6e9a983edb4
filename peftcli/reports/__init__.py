"""The record of a run (typed facts) and its renderings: HTML, Markdown, model card, tables, plots.

Text is made from facts and never read back.
"""
