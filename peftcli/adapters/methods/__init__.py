"""One folder a method; the folder's name is the name in recipes.

    config.py            its facts and fields, free of torch: a subclass of `MethodConfig`
    method.py            paper, equation, shapes and keys in the docstring; ends with `METHOD = ...`
    cases.py             the sections that the contract suite runs
    compatibility.json   written by `python -m peftcli.testing.compatibility NAME`

README.md, "Add a method", says which base classes there are and which commands prove it.
"""
