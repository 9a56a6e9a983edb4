"""LoRA and the variants that share its files."""
