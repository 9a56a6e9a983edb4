"""Adapters and merged models in the formats of other tools, each opened by the tool that reads it where it is installed.

    adapter -> plain pairs (W + B A, layer by layer) -> a file of the other tool -> the tool's answers against ours

A target is one file here with `write`; `export.py` is the job. What a target cannot hold is refused with the reason: an
adapter that its server would silently leave out is worse than none.
"""
