"""What a model is trained to do: how rows become a batch, and the loss. One file a task, found by its name.

`base` is the interface, `causal_lm` the example, `base_checks` what a base is asked before training, `losses/` what tasks
share, `registry` names and what other tools call them. How to add one: README.md, "Add a task".
"""
