"""What a model is trained to do: how rows become a batch, and the loss. One file a task, found by its name."""
