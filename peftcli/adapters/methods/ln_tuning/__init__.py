"""LN tuning: the base's norms."""
