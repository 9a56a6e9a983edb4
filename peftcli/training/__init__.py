"""The training loop: optimizers and schedules, checkpoint and exact resume, guards. `fit` receives all else.

`loop` is the order of a run's events; `stepper` takes one optimizer step with the gradients that `batch_gradients` adds
up; `training_state` is what a resumed run must know, `state_keeper` saves it and goes back to it. The loss and `evaluate`
come as functions, so that nothing here knows a task, a metric or a method. `config` holds the keys of the sections
`training` and `checkpoint`.
"""
