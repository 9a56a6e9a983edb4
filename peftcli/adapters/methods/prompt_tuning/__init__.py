"""Prompt tuning: trained rows in front of the embedded input."""
