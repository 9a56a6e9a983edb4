"""The card that goes with an adapter: made for its repository, or somebody's own, which only gains the base's licence."""

from __future__ import annotations

from pathlib import Path

from peftcli import files
from peftcli.adapters.documents import read_config
from peftcli.errors import ModelError, PeftcliError
from peftcli.jobs.adapter_base import base_of
from peftcli.models.licence import base_licence
from peftcli.recipe import load_recipe
from peftcli.redaction import redacted_name
from peftcli.reports.card import is_hub_id
from peftcli.reports.card_usage import CardPlace
from peftcli.reports.folder import RunFacts
from peftcli.reports.record import load_record
from peftcli.runs.cards import run_card
from peftcli.runs.locating import Location
from peftcli.runs.own_files import RECIPE_NAME
from peftcli.sharing.contents import CARD_NAME, Piece
from peftcli.sharing.places import Places

_LIMIT_BYTES = 16 << 20


def card_piece(location: Location, places: Places, place: CardPlace) -> tuple[Piece, list[str]]:
    """The card, and what to know of it."""
    licence = _licence(location)
    notes = [] if licence else ["the licence of the base is not known here: the card names none"]
    path = location.adapter / CARD_NAME
    own = path.read_text(encoding="utf-8") if path.is_file() and not path.is_symlink() else None
    made = _made(location, licence, place, own)
    if made is None:
        made, more = _completed(location, licence, own)
        notes += more
    return Piece(CARD_NAME, str(path), places.hidden(made).encode("utf-8")), notes


def _licence(location: Location) -> dict[str, str]:
    try:
        return base_licence(base_of(location))
    except (ModelError, PeftcliError):
        # the base is not here: sharing an adapter does not need it
        return {}


def _made(location: Location, licence: dict[str, str], place: CardPlace, own: str | None) -> str | None:
    """The run's card for the repository; None without a run, or where somebody has written on the run's own."""
    run = location.run
    if run is None or location.adapter != run / "adapter" or not (run / RECIPE_NAME).is_file():
        return None
    facts = RunFacts(load_record(run), label=redacted_name(run.resolve().name))
    recipe = load_recipe(run / RECIPE_NAME).recipe
    if own is not None and redacted_name(run_card(facts, recipe)) != own:
        return None
    return redacted_name(run_card(facts, recipe, licence=licence, place=place))


def _completed(location: Location, licence: dict[str, str], own: str | None) -> tuple[str, list[str]]:
    """A card of somebody's own, with the base and its licence in its front matter where it says nothing of them."""
    from huggingface_hub import ModelCard

    try:
        card = ModelCard(own if own is not None else _bare(location), ignore_metadata_errors=True)
    except Exception:  # a front matter that no parser takes; the Hub will say so
        return own or "", [f"{CARD_NAME} is sent as it is: its front matter cannot be read"]
    base = read_config(location.adapter).get("base_model_name_or_path")
    wanted = dict(licence)
    if isinstance(base, str) and is_hub_id(base):
        wanted["base_model"] = base
    if card.data.get("license") is not None:
        wanted = {key: value for key, value in wanted.items() if not key.startswith("license")}
    added = {key: value for key, value in wanted.items() if card.data.get(key) is None}
    for key, value in added.items():
        card.data[key] = value
    if own is None:
        return str(card), ["the adapter has no card: a short one is made"]
    said = f"with {', '.join(added)} added" if added else "as it is"
    # of a run: changed by somebody, or by a version that wrote it otherwise
    return str(card) if added else own, [f"{CARD_NAME} is sent as it lies there, {said}"]


def _bare(location: Location) -> str:
    """For an adapter without a card."""
    kind = str(read_config(location.adapter).get("peft_type", "adapter"))
    return f"---\nlibrary_name: peft\ntags:\n- peftcli\n---\n\n# An adapter ({kind})\n"


def read_text(path: Path) -> str:
    """A text of the run, empty where there is none."""
    return (
        files.read_bounded(path, limit_bytes=_LIMIT_BYTES).decode("utf-8", errors="replace") if path.is_file() else ""
    )
