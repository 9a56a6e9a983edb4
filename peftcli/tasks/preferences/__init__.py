"""Answers that are compared or judged: their log-probabilities, the losses over them, and what evaluation is told."""
