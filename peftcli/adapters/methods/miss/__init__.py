"""MiSS."""
