"""What tasks with labels share: which labels there are, what they weigh, what a model says of them, the losses."""
