"""What a model is worth: metrics with intervals, text written by it, conversations with it."""
