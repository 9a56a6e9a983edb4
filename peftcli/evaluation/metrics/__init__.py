"""One file a metric, found by its name; each ends with `METRIC = ...`, a `Metric` that states its direction, unit and
whether it is a share. Packages add more through the entry point group `peftcli.metrics`.
"""
