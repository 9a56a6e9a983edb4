"""Fast paths, each beside a plain form that computes the same: chosen by `training.kernels`, in training passes only.

A fast path never changes what is computed, but may round at other places; what it cannot take it leaves to the plain
form by itself. Evaluation and generation always take the plain forms.
"""
