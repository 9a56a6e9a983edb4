"""One file a metric, found by its name; each ends with `METRIC = ...`."""
