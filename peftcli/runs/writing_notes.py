"""How an adapter was trained to write, as it notes it in its own file: kept where the adapter goes without its run, and in
what is merged from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from peftcli.adapters.documents import ADDED_TOKENS, OWN_NAME, noted_tokens, read_own
from peftcli.errors import AdapterError
from peftcli.evaluation.config import GenerationConfig
from peftcli.models.heads import LabelHead
from peftcli.planning.plan import Prepared

PLAIN = "plain"
"""Prompts are texts to go on with."""
CHAT = "chat"
"""Prompts go through the chat template."""
LABELS = "labels"
"""The entry of the labels that a model gives."""


@dataclass(frozen=True)
class WritingNotes:
    """What is known of a folder that may be nobody's of ours: nothing is then noted."""

    prompt: str | None = None
    """How prompts looked in training: `plain`, or `chat` through the template; None where nobody noted it."""
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    seed: int | None = None
    """Of the draws, where `generation` draws."""
    labels: LabelHead | None = None
    """What a model that answers with labels can say."""
    added_tokens: tuple[str, ...] = ()
    """Tokens that were added to the base."""

    def to_dict(self) -> dict[str, Any]:
        """For our own file: what is no default."""
        stated, draws = self.generation.stated(), {} if self.seed is None else {"seed": self.seed}
        labels = {} if self.labels is None else {LABELS: self.labels.to_notes()}
        added = {ADDED_TOKENS: list(self.added_tokens)} if self.added_tokens else {}
        return {"prompt": self.prompt, **({"generation": stated} if stated else {}), **draws, **labels, **added}


def notes_of(prepared: Prepared) -> WritingNotes:
    """What a run notes in its adapter."""
    recipe = prepared.loaded.recipe
    style = CHAT if prepared.data.facts.holds_chats else PLAIN
    tokens = recipe.model.add_tokens if prepared.start is None else prepared.start.added_tokens
    seed = recipe.seed if recipe.generation.do_sample else None
    return WritingNotes(style, recipe.generation, seed, prepared.head, tuple(tokens))


def read_notes(folder: Path) -> WritingNotes:
    """The notes in an adapter or model folder. Raises `AdapterError` for settings that no recipe can have."""
    notes = read_own(folder).get("notes") or {}
    style, seed = notes.get("prompt"), notes.get("seed")
    try:
        generation = GenerationConfig.model_validate(notes.get("generation") or {})
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in fault["loc"])
        raise AdapterError(
            f"notes.generation.{name} is {fault['input']!r}, which no recipe can say"[:200],
            where=str(folder / OWN_NAME),
            fix="take it out of the file, or get the file again",
        ) from error
    return WritingNotes(
        style if style in (PLAIN, CHAT) else None,
        generation,
        seed if isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 else None,
        LabelHead.from_notes(notes.get(LABELS)),
        tuple(noted_tokens(read_own(folder))),
    )
