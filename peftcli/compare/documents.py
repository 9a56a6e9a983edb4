"""The files of a comparison: `compare.json`, `compare.csv`, the page, the recommended recipe."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftcli import files
from peftcli.compare.figures import Variant, member_line
from peftcli.compare.judging import Verdict
from peftcli.compare.page import render_page
from peftcli.compare.session import NAME, Ended, begin
from peftcli.compare.timing import Timed
from peftcli.compare.tuning import Tuned
from peftcli.redaction import redacted_name
from peftcli.runs.own_files import RECIPE_NAME

RECOMMENDED_NAME = "recommended.yaml"
"""The recipe of the best member, ready to train."""


@dataclass
class Document:
    """What `compare.json` says, as it grows."""

    folder: Path
    request: dict[str, Any]
    rows: dict[str, str] = field(default_factory=dict)
    """What the rows of each name are known by."""
    timed: list[Timed] = field(default_factory=list)
    tuned: list[Tuned] = field(default_factory=list)
    lost: list[Ended] = field(default_factory=list)
    """What failed while it was measured, in place of its members."""

    def begin(self) -> None:
        """Writes what was asked for. Raises what `session.begin` raises."""
        begin(self.folder, self.request, self.rows)

    def write(self, ended: Sequence[Ended], verdict: Verdict | None = None) -> dict[str, Any]:
        """Writes the file and returns what it holds."""
        document = {
            "request": self.request,
            "rows": self.rows,
            **({"timing": {each.name: each.to_dict() for each in self.timed}} if self.timed else {}),
            **({"tuning": {each.name: each.to_dict() for each in self.tuned}} if self.tuned else {}),
            "members": [member_line(each, self.folder) for each in (*ended, *self.lost)],
            "recommended": None if verdict is None else verdict.best.name,
            "why": [] if verdict is None else verdict.sentences(),
        }
        files.write_text(self.folder / NAME, files.to_json(document))
        return document

    def write_all(self, ended: Sequence[Ended], variants: Sequence[Variant], verdict: Verdict) -> dict[str, Any]:
        """Writes every file of a comparison that came to its end; returns `compare.json`."""
        document = self.write(ended, verdict)
        files.write_text(self.folder / "compare.csv", _csv(document["members"]))
        files.write_text(
            self.folder / "report.html", redacted_name(render_page([*ended, *self.lost], variants, verdict))
        )
        recipe = (verdict.best.members[0].run / RECIPE_NAME).read_text(encoding="utf-8")
        files.write_text(self.folder / RECOMMENDED_NAME, recipe)
        return document


def _csv(members: Sequence[dict[str, Any]]) -> str:
    rows = [_flat(member) for member in members]
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _flat(member: dict[str, Any]) -> dict[str, Any]:
    evaluation = member.get("evaluation") or {}
    scores = {f"{side}_{name}": value for side, found in evaluation.items() for name, value in found.items()}
    vary = {f"vary_{key}": value for key, value in member["vary"].items()}
    kept = {key: value for key, value in member.items() if key not in ("evaluation", "vary")}
    return {**kept, **vary, **scores}
