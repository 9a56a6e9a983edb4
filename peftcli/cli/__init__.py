"""The command line: `main` is the console script `peft`.

One thin function a command in `commands/`, which imports its job inside, so that help is quick. Errors become text and an
exit code in `entry` alone.
"""

from peftcli.cli.entry import main

__all__ = ["main"]
