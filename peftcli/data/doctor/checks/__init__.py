"""One module a check; its name, with hyphens, is the key under `data.checks`. Each ends with `CHECK = Check(...)`."""
