"""The record of a run (typed facts) and its renderings: HTML, Markdown, model card, tables, plots.

Text is made from facts and never read back. `record` is the schema of run.json; a fact that a rendering needs is put
there, or handed in, by who knows it: this room is below tasks, metrics and methods, and names none.

A page: `sections` say what stands in it and how much, as frozen facts; `templates` lay it out (Jinja2, autoescaped), in
`page.css` is how it looks; `plots` draw. A new part of a page is a function in `sections` and a template of its facts.
What a terminal shows: `tables` (by rich) draws, `terminal` says what.
"""
