"""One folder per method; the folder name is the name in recipes."""
