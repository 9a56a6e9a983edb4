"""Bottleneck adapter layers."""
