"""One module a format, found by its name; each ends with `FORMAT = Format(...)`, which states its parts, how a row is
recognised and read, and what other tools call it. Packages add more through the entry point group `peftcli.formats`.
"""
