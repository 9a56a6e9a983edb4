"""What a model is worth: metrics with intervals, text written by it, conversations with it.

`metric` says what a metric is, `registry` finds it by name, `evaluate` scores rows with it, `result` and `bootstrap` give
the intervals; `generate` and `prompts` write text. How to add a metric: README.md, "Add a metric".
"""
