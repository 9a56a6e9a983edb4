"""Compacter: adapter layers of Kronecker products."""
