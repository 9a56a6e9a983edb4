"""Recipes from other tools' configurations.

`draft.py` collects what becomes of each of their keys, `tools/` knows a tool each, `telling.py` recognises which one a file
is of, `migration.py` is the job. Adding a tool: a module in `tools/` with `NAME`, `is_one(given)`, `carry(draft)`, and its
place in `telling.TOOLS`.
"""
