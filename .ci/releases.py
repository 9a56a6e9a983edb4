"""The releases of what pyproject.toml depends on: those installed here, or with --oldest the lowest that it allows."""

from __future__ import annotations

import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
DEPENDENCY = re.compile(r"(?P<name>[A-Za-z0-9_.-]+)>=(?P<oldest>[0-9.]+)(,<[0-9.]+)?")


def dependencies() -> Iterator[tuple[str, str]]:
    """Name and oldest release of each. Each dependency states its oldest release, and may state what is too new."""
    for line in tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]:
        found = DEPENDENCY.fullmatch(line)
        if found is None:
            sys.exit(f"pyproject.toml: {line!r} is not NAME>=OLDEST or NAME>=OLDEST,<TOO_NEW")
        yield found["name"], found["oldest"]


if __name__ == "__main__":
    if "--oldest" in sys.argv[1:]:
        print("\n".join(f"{name}=={oldest}" for name, oldest in dependencies()))
    else:
        installed = " ".join(f"{name} {importlib.metadata.version(name)}" for name, _ in dependencies())
        print(f"Python {sys.version.split()[0]} {installed}")
