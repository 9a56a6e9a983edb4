"""`peft generate` and `peft chat`: text from the tuned model, the base's answer beside it on request."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from peftcli import files
from peftcli.errors import AdapterError, DataError, Fault
from peftcli.evaluation.chat import Conversation, Turn, take_turn
from peftcli.evaluation.config import GenerationConfig
from peftcli.evaluation.generate import GeneratedAnswer, generate, generate_stream
from peftcli.evaluation.prompts import encode_row
from peftcli.jobs.opening import Location, OpenModel
from peftcli.models.auto_class import WRITING
from peftcli.runs.writing_notes import CHAT, PLAIN, read_notes

INPUT_LIMIT_BYTES = 1 << 30
MAX_FAULTS = 5


@dataclass(frozen=True)
class Request:
    """One prompt as a row: `prompt` (a text or messages) or `messages`. It is kept for the output."""

    row: dict[str, Any]
    origin: str


@dataclass(frozen=True)
class Answer:
    """The tuned model's answers to one prompt (mostly one), and the base's where they were asked for."""

    request: Request
    texts: tuple[str, ...]
    bases: tuple[str, ...] | None
    cut: int = 0
    """Answers of the tuned model that ended at the budget and not by themselves."""

    @property
    def text(self) -> str:
        """The first answer."""
        return self.texts[0]

    @property
    def base(self) -> str | None:
        """The base's first answer."""
        return None if self.bases is None else self.bases[0]

    def written(self) -> dict[str, Any]:
        """`answer`, and `base_answer` where there is one; where there are several, `answers` and `base_answers` too."""
        several = len(self.texts) > 1
        found: dict[str, Any] = {"answer": self.text} | ({"answers": list(self.texts)} if several else {})
        if self.bases is not None:
            found |= {"base_answer": self.base} | ({"base_answers": list(self.bases)} if several else {})
        return found

    def to_dict(self) -> dict[str, Any]:
        """The input row with what was written."""
        return beside_row(self.request.row, self.written())


def beside_row(row: Mapping[str, Any], written: Mapping[str, Any]) -> dict[str, Any]:
    """A row with what was written of it.

    A row that brings a field of such a name keeps it: what was written then stands under `generated_answer`.
    """
    prefix = "generated_" if written.keys() & row.keys() else ""
    return {**row, **{prefix + name: text for name, text in written.items()}}


def text_request(prompt: str) -> Request:
    """A prompt given on the command line."""
    return Request({"prompt": prompt}, "--prompt")


def read_requests(path: Path) -> list[Request]:
    """Prompts of a JSONL file: rows with `prompt` (text) or `messages` (a trailing answer is left out).

    Raises `DataError` naming file and line of each row that cannot be read.
    """
    if not path.is_file():
        raise DataError("no such input file", where=str(path), fix="give a JSONL file with a `prompt` in each row")
    requests: list[Request] = []
    faults: list[Fault] = []
    for number, raw in enumerate(files.read_bounded(path, limit_bytes=INPUT_LIMIT_BYTES).splitlines(), start=1):
        if raw.strip():
            found = _request(raw, f"{path}:{number}")
            (faults if isinstance(found, Fault) else requests).append(found)  # type: ignore[arg-type]
    if faults:
        more = [Fault(f"and {len(faults) - MAX_FAULTS} more rows")] if len(faults) > MAX_FAULTS else []
        raise DataError("some input rows cannot be read", faults=[*faults[:MAX_FAULTS], *more])
    if not requests:
        raise DataError("the input file holds no row", where=str(path), fix="put one JSON object on each line")
    return requests


def _request(raw: bytes, where: str) -> Request | Fault:
    try:
        row = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Fault(f"not UTF-8 (byte {error.start})", where, "save the file as UTF-8")
    except (ValueError, RecursionError):
        return Fault("not valid JSON", where, "put one JSON object on each line")
    if not isinstance(row, dict):
        return Fault("not a JSON object", where, 'for instance {"prompt": "..."}')
    return Request(row, where)


def require_writer(opened: OpenModel) -> None:
    """Raises `AdapterError` for an adapter whose models do not write text."""
    if opened.auto_class not in WRITING:
        raise AdapterError(
            f"{opened.made_for}, which writes no text",
            where=str(opened.location.adapter),
            fix="`peft inspect` shows what it is",
        )


def chat_note(location: Location) -> str | None:
    """What whoever talks to a model must know of it: an adapter that was trained on raw text never saw a conversation."""
    if read_notes(location.adapter).prompt != PLAIN:
        return None
    return (
        f"this {location.noun} was trained on raw text, not on conversations: the chat template is new to it; "
        '`peft generate --prompt "..."` asks it as it was trained'
    )


def _is_plain(request: Request, opened: OpenModel) -> bool:
    """Whether a prompt is a text that an adapter of raw text goes on with, to which no end of a turn means anything."""
    return isinstance(request.row.get("prompt"), str) and read_notes(opened.location.adapter).prompt == PLAIN


def prompt_ids(request: Request, opened: OpenModel, config: GenerationConfig) -> list[int]:
    """Token ids of a prompt, in the form that the adapter was trained on."""
    require_writer(opened)
    style = read_notes(opened.location.adapter).prompt
    return encode_row(
        opened.tokenizer,
        request.row,
        where=request.origin,
        system_prompt=config.system_prompt,
        chat=None if style is None else style == CHAT,
        whole=opened.auto_class == WRITING[1],
    )


def answer_all(
    opened: OpenModel, requests: Sequence[Request], config: GenerationConfig, *, with_base: bool = False, seed: int = 0
) -> list[Answer]:
    """Batched, left-padded answers in the order of the requests, as many to each as the configuration says."""
    prompts = [prompt_ids(request, opened, config) for request in requests]
    plain = [_is_plain(request, opened) for request in requests]

    number = config.num_return_sequences

    def run(model: nn.Module) -> list[list[GeneratedAnswer]]:
        written: dict[int, list[GeneratedAnswer]] = {}
        for style in sorted(set(plain)):
            chosen = [index for index, found in enumerate(plain) if found is style]
            # the same prompt again draws another answer
            repeated = [index for index in chosen for _ in range(number)]
            origins = [requests[index].origin for index in repeated]
            asked = [prompts[index] for index in repeated]
            answers = generate(
                model, opened.tokenizer, asked, config=config, seed=seed, origins=origins, chat=not style
            )
            for index, answer in zip(repeated, answers, strict=True):
                written.setdefault(index, []).append(answer)
        return [written[index] for index in range(len(requests))]

    tuned = run(opened.model)
    base: Sequence[list[GeneratedAnswer] | None] = [None] * len(tuned)
    if with_base:
        with opened.as_base() as model:
            base = run(model)
    return [
        Answer(
            request,
            tuple(answer.text for answer in own),
            None if bases is None else tuple(answer.text for answer in bases),
            cut=sum(answer.finish == "length" for answer in own),
        )
        for request, own, bases in zip(requests, tuned, base, strict=True)
    ]


def cut_note(answers: Sequence[Answer], config: GenerationConfig) -> str | None:
    """What to know of answers that were to be JSON: one that was cut at the budget is not whole."""
    cut = sum(answer.cut for answer in answers)
    if config.json_schema is None or not cut:
        return None
    return f"{cut} answers were cut before their JSON ended: raise generation.max_new_tokens"


def stream_answer(
    opened: OpenModel,
    request: Request,
    config: GenerationConfig,
    write: Callable[[str], None],
    *,
    seed: int = 0,
    as_base: bool = False,
) -> str:
    """One answer, its text handed to `write` as it is written; `as_base`: the base's."""
    ids = prompt_ids(request, opened, config)
    chat = not _is_plain(request, opened)
    with opened.as_base() if as_base else nullcontext(opened.model) as model:
        return generate_stream(model, opened.tokenizer, ids, config=config, stream=write, seed=seed, chat=chat).text


def chat_turns(
    opened: OpenModel,
    messages: Iterator[str],
    config: GenerationConfig,
    *,
    write: Callable[[str], None],
    write_base: Callable[[str], None] | None = None,
    seed: int = 0,
) -> Iterator[Turn]:
    """A conversation: one turn for each message, the history carried on."""
    require_writer(opened)
    conversation = Conversation()
    for number, message in enumerate(messages):
        turn = take_turn(
            opened.model,
            opened.tokenizer,
            conversation,
            message,
            config=config,
            stream=write,
            disabled=opened.as_base if write_base is not None else None,
            base_stream=write_base or (lambda _piece: None),
            seed=seed + number,
        )
        conversation = turn.conversation
        yield turn


def answers_text(answers: Sequence[Answer]) -> str:
    """What `peft generate` prints: the base's answer above the tuned one where both are wanted."""
    return "\n\n".join(_answer_text(answer) for answer in answers)


def _answer_text(answer: Answer) -> str:
    if answer.bases is None:
        return "\n".join(answer.texts)
    return "\n".join([*(f"base:  {text}" for text in answer.bases), *(f"tuned: {text}" for text in answer.texts)])
