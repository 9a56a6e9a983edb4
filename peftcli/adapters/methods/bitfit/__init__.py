"""BitFit: the base's biases."""
