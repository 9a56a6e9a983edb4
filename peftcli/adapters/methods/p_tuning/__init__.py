"""P-tuning: rows in front of the embedded input, made by a small network while training."""
