"""Base models and tokenizers: where they come from, how they are built, and what their weights are."""
