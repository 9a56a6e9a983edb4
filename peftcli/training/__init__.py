"""The training loop: optimizers and schedules, checkpoint and exact resume, guards. `fit` receives all else."""
