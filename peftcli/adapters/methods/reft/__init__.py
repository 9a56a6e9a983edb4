"""ReFT: learned edits of hidden states."""
