"""Prefix tuning: trained keys and values in front of every attention."""
