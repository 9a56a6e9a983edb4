"""One module a format, found by its name; packages add more through the entry point group `peftcli.formats`."""
