"""One file per command, each with one thin function `command`; heavy imports stay inside it."""
