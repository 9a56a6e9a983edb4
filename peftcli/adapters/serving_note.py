"""What servers of many adapters make of one adapter, as facts: told in text by some, refused by others."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ServingNote:
    """One thing that stands between an adapter and such a server, or that the server must be told."""

    message: str
    fix: str | None = None
    refuses: bool = True
    """Whether servers cannot serve it; else it is only to be known."""

    @property
    def text(self) -> str:
        """The note on one line."""
        return self.message if self.fix is None else f"{self.message}; {self.fix}"


def cannot_serve(why: str, fix: str) -> ServingNote:
    """The note that says why neither server takes an adapter."""
    return ServingNote(f"vLLM and SGLang cannot serve it: {why}", fix)
