"""Rows become tokens and loss weights: one module for each shape of row."""
