"""Where things lie on this machine is nobody else's business: folders are written otherwise in what is sent.

an input of the recipe -> `./inputs/NAME`, where whoever repeats the run puts it
the run, the working directory, the package, the home folder -> a short word
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peftcli
from peftcli.yaml import parse, plain

INPUTS = "inputs"
"""Folder beside a published recipe that its files are expected in."""


@dataclass(frozen=True)
class Places:
    """Folders of this machine and what is written instead, longest first."""

    written: tuple[tuple[str, str], ...]
    inputs: tuple[str, ...]
    """What the recipe names by a path, as it is written instead."""

    def hidden(self, text: str) -> str:
        """The text with every known folder written otherwise."""
        for path, instead in self.written:
            for way in dict.fromkeys((path, html.escape(path), json.dumps(path)[1:-1])):
                text = text.replace(way, instead)
        return text


def places_of(recipe: str, run: Path | None) -> Places:
    """The places that a resolved recipe (its text, empty for none) and a run tell of."""
    inputs: dict[str, str] = {}
    for path in _absolute(_document(recipe)):
        inputs.setdefault(path, f"./{INPUTS}/{_free_name(path, inputs)}")
    known = {str(Path(peftcli.__file__).parent): "peftcli", str(Path.cwd()): ".", str(Path.home()): "~"}
    if run is not None:
        known = {str(run.absolute()): "RUN"} | known
    known = {path: instead for path, instead in known.items() if len(path) > 1}
    every = known | inputs
    return Places(tuple(sorted(every.items(), key=lambda item: -len(item[0]))), tuple(inputs.values()))


def _document(recipe: str) -> Any:
    root = parse(recipe.encode("utf-8"), "recipe.yaml").node if recipe else None
    return None if root is None else plain(root)


def _absolute(value: Any) -> Iterator[str]:
    """Every text in a document that is an absolute path, in its order; a regular expression may begin alike."""
    if isinstance(value, dict):
        for item in value.values():
            yield from _absolute(item)
    elif isinstance(value, list):
        for item in value:
            yield from _absolute(item)
    elif isinstance(value, str) and value.startswith("/") and _leads_somewhere(value):
        yield value


def _leads_somewhere(text: str) -> bool:
    """A file or folder, or a pattern of files in one."""
    try:
        return Path(text).exists() or Path(text).parent.is_dir()
    except (OSError, ValueError):
        return False


def _free_name(path: str, taken: dict[str, str]) -> str:
    names = {instead.split("/", 2)[2] for instead in taken.values()}
    name, number = Path(path).name or "root", 1
    found = name
    while found in names:
        number += 1
        found = f"{number}/{name}"
    return found
