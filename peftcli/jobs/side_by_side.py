"""Several adapters on one base that is loaded once: the same prompts, answered by each of them.

One adapter at a time is on the base. It is taken off before the next one comes, so that each answers as if it were alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from peftcli.adapters.surgery import attached, detach
from peftcli.errors import AdapterError, RecipeError
from peftcli.evaluation.chat import Conversation, take_turn
from peftcli.jobs.adapter_base import base_of, load_base, tokens_beside, trained_storage
from peftcli.jobs.generate import (
    Answer,
    Request,
    answer_all,
    beside_row,
    chat_note,
    prompt_ids,
    require_writer,
    stream_answer,
)
from peftcli.jobs.opening import OpenModel, Writing, open_adapter, writing_of
from peftcli.models.auto_class import WRITING
from peftcli.models.source import BaseSource
from peftcli.runs.locating import Location, holds_a_model, locate

BASE = "base"
"""The label of the base's answers, which no adapter takes."""
_Write = Callable[[str, str], None]
"""Called with a label and a piece of its answer."""


# -- which they are ----------------------------------------------------------------------------------------------


def names_of(paths: Sequence[Path]) -> dict[str, Path]:
    """A label for each path: its run's folder, with as many of the folders above it as tell the paths apart.

    Raises `RecipeError` for a path that is named twice.
    """
    whole = [path.expanduser().resolve() for path in paths]
    parts = [(path.parent if path.name == "adapter" else path).parts for path in whole]
    if len(set(parts)) < len(parts):
        twice = next(path for path, own in zip(paths, parts, strict=True) if parts.count(own) > 1)
        raise RecipeError(f"{twice} is named twice", fix="name each adapter once")
    return {_label(own, parts): path for own, path in zip(parts, paths, strict=True)}


def _label(own: tuple[str, ...], others: Sequence[tuple[str, ...]]) -> str:
    for length in range(1, len(own)):
        tail = own[-length:]
        if tail != (BASE,) and sum(other[-length:] == tail for other in others) == 1:
            return "/".join(tail)
    return "/".join(own)


def one_base(located: Mapping[str, Location]) -> BaseSource:
    """The base of all of them. Raises `RecipeError` where they are of different ones."""
    sources = {name: base_of(location) for name, location in located.items()}
    places = {(source.location, source.revision) for source in sources.values()}
    if len(places) > 1:
        told = ", ".join(f"{name} of {source.name}" for name, source in sources.items())
        raise RecipeError(f"the adapters are of different bases: {told}", fix="name those of one base together")
    return next(iter(sources.values()))


# -- on their base -----------------------------------------------------------------------------------------------


class SideBySide:
    """Adapters by name, and the base that they take turns on.

    `warnings`: settings of theirs without effect. `chat_notes`: label -> what to know before talking to it.
    """

    def __init__(self, paths: Sequence[Path], *, base: str | None = None, overrides: Sequence[str] = ()) -> None:
        """Raises what locating them raises, `RecipeError` for a whole model or for adapters of different bases."""
        self.paths = names_of(paths)
        for path in paths:
            if holds_a_model(path.expanduser()):
                raise RecipeError(
                    f"{path} is a whole model", fix="side by side stand adapters of one base: ask it alone"
                )
        self._base = base
        located = {name: locate(path, base=base) for name, path in self.paths.items()}
        one_base(located)
        self.writings: dict[str, Writing] = {name: writing_of(each, overrides) for name, each in located.items()}
        self.warnings = tuple(dict.fromkeys(text for each in self.writings.values() for text in each.warnings))
        notes = {name: chat_note(each) for name, each in located.items()}
        self.chat_notes = {name: note for name, note in notes.items() if note is not None}
        self._held: tuple[tuple[Any, ...], nn.Module] | None = None

    @contextmanager
    def opened(self, name: str) -> Iterator[OpenModel]:
        """The base with this adapter on it, which is taken off behind the block. Raises every error of loading, and
        `AdapterError` for an adapter that writes no text."""
        try:
            found = open_adapter(self.paths[name], base=self._base, read=self._bare_base)
            require_writer(found)
            yield found
        finally:
            self._bare()

    def _bare_base(
        self, location: Location, source: BaseSource, *, auto_class: str, dtype: torch.dtype, device: str = "cpu"
    ) -> nn.Module:
        """The base that is held where it is of this type, else a new one in its place."""
        if auto_class not in WRITING:
            raise AdapterError("this adapter writes no text", where=str(location.adapter), fix="ask it alone")
        # how its layers are stored, and rows for tokens that an adapter added, are the base's own there
        wanted = (auto_class, dtype, device, trained_storage(location, source), tokens_beside(location, source))
        if self._held is None or self._held[0] != wanted:
            # before the new one is read: never two of them in memory
            self._held = None
            self._held = wanted, load_base(location, source, auto_class=auto_class, dtype=dtype, device=device)
        self._bare()
        return self._held[1]

    def _bare(self) -> None:
        if self._held is not None and attached(self._held[1]) is not None:
            detach(self._held[1])


# -- prompts -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SideAnswer:
    """What each adapter said to one prompt, by its label; and the base, by the settings of the first."""

    request: Request
    by_name: dict[str, Answer]

    @property
    def bases(self) -> tuple[str, ...] | None:
        """The base's answers where they were asked for."""
        return next(iter(self.by_name.values())).bases

    def to_dict(self) -> dict[str, Any]:
        """The input row with `adapters` (label -> what `peft generate` writes of it alone) and `base_answer`."""
        written = [answer.written() for answer in self.by_name.values()]
        base = {key: value for key, value in written[0].items() if key.startswith("base_")}
        own = [{key: value for key, value in each.items() if key not in base} for each in written]
        return beside_row(self.request.row, {"adapters": dict(zip(self.by_name, own, strict=True)), **base})


def answer_each(side: SideBySide, requests: Sequence[Request], *, with_base: bool = False) -> list[SideAnswer]:
    """Every adapter's answers to every prompt, in the order of the prompts. An adapter answers all of them in turn."""
    said: dict[str, list[Answer]] = {}
    for name, writing in side.writings.items():
        with side.opened(name) as opened:
            wanted = with_base and not said
            said[name] = answer_all(opened, requests, writing.config, with_base=wanted, seed=writing.seed)
    return [
        SideAnswer(request, {name: answers[number] for name, answers in said.items()})
        for number, request in enumerate(requests)
    ]


def stream_each(side: SideBySide, request: Request, write: _Write, *, with_base: bool = False) -> None:
    """One prompt, answered by the base where it is asked for and by each adapter, as the answers are written."""
    for number, (name, writing) in enumerate(side.writings.items()):
        with side.opened(name) as opened:
            # the prompt is looked at before anything stands on the screen
            prompt_ids(request, opened, writing.config)
            if with_base and number == 0:
                stream_answer(opened, request, writing.config, _to(write, BASE), seed=writing.seed, as_base=True)
                write(BASE, "")
            stream_answer(opened, request, writing.config, _to(write, name), seed=writing.seed)
            # an answer without a word is one too
            write(name, "")


def _to(write: _Write, label: str) -> Callable[[str], None]:
    return lambda piece: write(label, piece)


def side_text(answers: Sequence[SideAnswer]) -> str:
    """What `peft generate` prints: a line for each label and answer, prompts apart."""
    return "\n\n".join(_side_text(answer) for answer in answers)


def _side_text(answer: SideAnswer) -> str:
    said = {BASE: answer.bases or (), **{name: each.texts for name, each in answer.by_name.items()}}
    return "\n".join(f"{marked(label, said)}{text}" for label, texts in said.items() for text in texts)


def marked(label: str, labels: Mapping[str, Any]) -> str:
    """A label with its colon, as wide as the widest of them."""
    return f"{label}:".ljust(max(map(len, labels)) + 2)


# -- conversations -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SideTurn:
    """What each adapter said to one message, and the base in the conversation of the first."""

    message: str
    said: dict[str, str]
    base: str | None

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints of it."""
        answers: dict[str, Any] = {name: {"answer": text} for name, text in self.said.items()}
        base = {} if self.base is None else {"base_answer": self.base}
        return {"message": self.message, "adapters": answers, **base}


def side_turns(
    side: SideBySide, messages: Iterator[str], write: _Write, *, with_base: bool = False
) -> Iterator[SideTurn]:
    """A conversation with each adapter: all hear the same messages, and each goes on from its own answers."""
    held = dict.fromkeys(side.writings, Conversation())
    for number, message in enumerate(messages):
        said: dict[str, str] = {}
        base: str | None = None
        for name, writing in side.writings.items():
            with side.opened(name) as opened:
                turn = take_turn(
                    opened.model, opened.tokenizer, held[name], message, config=writing.config,
                    stream=_to(write, name), disabled=opened.as_base if with_base and not said else None,
                    base_stream=_to(write, BASE), seed=writing.seed + number,
                )  # fmt: skip
            write(name, "")
            held[name], said[name] = turn.conversation, turn.reply.text
            base = turn.base.text if turn.base is not None else base
        yield SideTurn(message, said, base)
