"""LLaMA-Adapter: gated attention to trained prompts in the upper layers."""
