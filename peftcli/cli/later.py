"""Commands and flags whose time has not come."""

from __future__ import annotations

from typing import NoReturn

from peftcli.errors import RecipeError


def not_yet(what: str) -> NoReturn:
    """Raises the error of something that is not supported yet."""
    raise RecipeError(f"{what} is not supported yet", fix="see `peft --help` for what is")
