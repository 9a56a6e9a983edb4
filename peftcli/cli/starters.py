"""Starter recipes: package data, copied out, never over a file."""

from __future__ import annotations

import difflib
from pathlib import Path

from peftcli import files
from peftcli.cli.later import not_yet
from peftcli.errors import RecipeError, StorageError

_FOLDER = Path(__file__).parent / "templates"
_SUMMARY_MARK = "# "


def starter_names() -> list[str]:
    """Names of the starters; quickstart first."""
    return sorted((path.stem for path in _FOLDER.glob("*.yaml")), key=lambda name: (name != "quickstart", name))


def starter_summaries() -> dict[str, str]:
    """Name -> the sentence at the top of the starter."""
    found = {}
    for name in starter_names():
        lines = (_FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        comment = next(line for line in lines if line.startswith(_SUMMARY_MARK) and "yaml-language-server" not in line)
        found[name] = comment.removeprefix(_SUMMARY_MARK)
    return found


def write_starter(name: str, output: Path | None) -> Path:
    """Writes a starter to `output` (default `./NAME.yaml`).

    Raises `RecipeError` for an unknown one, `StorageError` when the file exists.
    """
    key = name.strip().lower().replace("_", "-")
    if key not in starter_names():
        near = difflib.get_close_matches(key, starter_names(), n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"there are {', '.join(starter_names())}"
        raise RecipeError(f"no starter {name!r}", fix=hint)
    path = output if output is not None else Path(f"{key}.yaml")
    if path.exists():
        raise StorageError("the file exists and is left alone", where=str(path), fix="choose another name by --output")
    files.write_bytes(path, (_FOLDER / f"{key}.yaml").read_bytes())
    return path


def write_ci_job(service: str, output: Path | None) -> Path:
    """A CI job that validates, plans and reproduces."""
    not_yet(f"peft init --ci {service}")
