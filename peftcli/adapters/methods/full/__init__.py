"""Full fine-tuning, the baseline."""
