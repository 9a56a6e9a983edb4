"""`peft push`: adapter, card, recipe, lock and report into a repository of the Hub, after showing what is sent."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peftcli.adapters.documents import CONFIG_NAME, read_config
from peftcli.errors import CheckFailed, RecipeError
from peftcli.models.hub_repository import Repository, look_up, own_name, upload
from peftcli.reports import numbers
from peftcli.reports.card_usage import CardPlace
from peftcli.runs.as_written import require_as_written
from peftcli.runs.locating import Location, locate
from peftcli.runs.own_files import RECIPE_NAME
from peftcli.sharing.card import card_piece, read_text
from peftcli.sharing.contents import Piece, adapter_pieces, run_pieces
from peftcli.sharing.places import Places, places_of
from peftcli.sharing.secrets import require_no_secrets

_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*\Z")


@dataclass(frozen=True)
class PushPlan:
    """What would be sent, before anything is."""

    there: Repository
    private: bool
    changed: tuple[Piece, ...]
    unchanged: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class PushReport:
    """What was sent."""

    repository: str
    revision: str
    url: str | None
    """Of the commit; None where nothing had changed."""
    sent: tuple[str, ...]
    unchanged: tuple[str, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints, as plain data."""
        document = asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in document.items()}


def push_adapter(
    path: str | Path,
    repository: str,
    *,
    private: bool = False,
    revision: str | None = None,
    agree: Callable[[PushPlan], None],
    say: Callable[[str], None] = lambda line: None,
) -> PushReport:
    """Sends what belongs to an adapter to `owner/name`, which is made where it is missing, and nothing else of its folder.

    `agree` is shown the plan before anything is sent, and raises where nothing is to be. Raises `AdapterError` and
    `CheckpointError` (nothing to send, or damaged), `CheckFailed` (a credential in it, a public repository where a
    private one is wanted) and `HubError`.
    """
    if not _NAME.match(repository) or ".." in repository or "--" in repository:
        raise RecipeError(f"{repository!r} is not the name of a repository", fix="owner/name")
    location = locate(path)
    # what needs no network comes first: nobody logs in only to learn that there is a credential in the recipe
    places, pieces = _own_files(location)
    require_no_secrets(pieces)
    require_as_written(location)
    name = repository if "/" in repository else own_name(repository)
    card, notes = card_piece(location, places, CardPlace(name, revision))
    require_no_secrets([card])
    pieces, notes = [*pieces, card], [*notes, *_notes(location, places)]
    there = look_up(name, revision)
    _require_private(there, private)
    plan = _plan(there, private, pieces, notes)
    agree(plan)
    if plan.changed:
        say(f"sending {_total(plan.changed)} to {name}")
    contents = {piece.name: piece.source for piece in plan.changed}
    message = f"Adapter {location.record.get('name') or location.adapter.name} by peftcli"
    url = upload(there, contents, private=private, message=message)
    return PushReport(name, there.branch, url, tuple(contents), plan.unchanged, plan.notes)


def _run_of(location: Location) -> Path | None:
    """The run that the adapter is of; an adapter that was put beside a run's record is not its own."""
    return location.run if location.run is not None and location.adapter == location.run / "adapter" else None


def _own_files(location: Location) -> tuple[Places, list[Piece]]:
    """Everything that is sent but the card."""
    run = _run_of(location)
    if run is None:
        return places_of("", None), adapter_pieces(location)
    places = places_of(read_text(run / RECIPE_NAME), run)
    return places, [*adapter_pieces(location), *run_pieces(run, places)]


def _notes(location: Location, places: Places) -> list[str]:
    notes = []
    base = read_config(location.adapter).get("base_model_name_or_path")
    if isinstance(base, str) and base.startswith(("/", "~", ".")):
        notes.append(f"{CONFIG_NAME} names the base by a folder of this machine: {base}")
    if places.inputs:
        notes.append(f"files that the recipe names are not sent; it has them as {', '.join(places.inputs)}")
    samples, rows = (len(location.record.get(key) or ()) for key in ("samples", "rows"))
    if _run_of(location) is not None and (samples or rows):
        notes.append(f"the report shows {samples} samples and {rows} training rows of your data")
    return notes


def _plan(there: Repository, private: bool, pieces: list[Piece], notes: list[str]) -> PushPlan:
    changed = tuple(piece for piece in pieces if not there.holds(piece.name, piece.source))
    unchanged = tuple(piece.name for piece in pieces if piece not in changed)
    others = there.others({piece.name for piece in pieces})
    if others:
        notes = [*notes, f"left alone in the repository: {', '.join(others)}"]
    return PushPlan(there, private, changed, unchanged, tuple(notes))


def _require_private(there: Repository, private: bool) -> None:
    if private and there.exists and there.private is False:
        raise CheckFailed(
            f"{there.name} exists and is public: --private would not hide what is sent",
            fix="make it private on its page, or name another one",
        )


def _total(pieces: tuple[Piece, ...]) -> str:
    return f"{len(pieces)} files, {numbers.data_size(sum(piece.size for piece in pieces))}"


def plan_text(plan: PushPlan) -> str:
    """What is shown before anything is sent."""
    there = plan.there
    kind = "new, " if not there.exists else ""
    seen = {True: "private", False: "public", None: "visibility unknown"}[
        there.private if there.exists else plan.private
    ]
    lines = [f"to {there.name} ({kind}{seen}), branch {there.branch}:"]
    width = max((len(piece.name) for piece in plan.changed), default=0)
    lines += [f"  {piece.name:<{width}}  {numbers.data_size(piece.size)}" for piece in plan.changed]
    if plan.unchanged:
        lines.append(f"  unchanged there: {', '.join(plan.unchanged)}")
    return "\n".join([*lines, *(f"note: {note}" for note in plan.notes)])


def push_text(report: PushReport) -> str:
    """What `peft push` prints."""
    if report.url is None:
        return f"{report.repository} has it all already on branch {report.revision}; nothing was sent"
    return f"sent {len(report.sent)} files to {report.repository}, branch {report.revision}: {report.url}"
