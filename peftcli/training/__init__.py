"""The training loop: optimizers and schedules, checkpoint and exact resume, guards. `fit` receives all else.

`loop` is the order of a run's events, `step` one optimizer step; the loss and `evaluate` come as functions, so that
nothing here knows a task, a metric or a method. `config` holds the keys of the sections `training` and `checkpoint`.
"""
