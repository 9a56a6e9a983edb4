"""The command line: `main` is the console script `peft`."""

from peftcli.cli.entry import main

__all__ = ["main"]
