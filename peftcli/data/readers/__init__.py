"""One module a container: each yields chunks of rows with their line (or row) numbers and logs what it cannot read."""
