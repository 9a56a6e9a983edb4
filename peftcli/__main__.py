"""`python -m peftcli` is `peft`."""

from peftcli.cli.entry import main

main()
