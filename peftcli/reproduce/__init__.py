"""`peft reproduce`: run again what a lock pins, and tell whether, how exactly, and from which step on it differs."""
