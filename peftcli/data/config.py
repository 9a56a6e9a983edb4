"""The `data` section of a recipe: where rows come from, what they are, and how they become tokens. Free of torch."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from peftcli.data.names import check_names, format_names, nearest, own_format_names
from peftcli.errors import FieldFault

Severity = Literal["fail", "warn", "off"]
"""What a finding does: stop the run, warn, or nothing (the check is not told)."""
Truncation = Literal["auto", "error", "drop", "left", "right", "split"]
"""What happens to rows longer than `max_length`; `auto` becomes another one by the format."""
TrainOn = Literal["completions", "last-turn", "all"]
"""What of a row carries loss."""
Thoughts = Literal["train", "mask"] | Annotated[float, Field(ge=0)]
"""What becomes of the thoughts before an answer."""

_STRICT = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, strict=True, allow_inf_nan=False)


def _format_name(value: Any) -> Any:
    """A format under its own spelling (hyphens); an unknown one is an error that names the nearest."""
    if not isinstance(value, str):
        return value
    name = value.replace("_", "-")
    if name == "auto" or name in own_format_names():
        return name
    # looking through installed packages takes time, so only for a name that is none of ours
    known = ("auto", *format_names())
    if name not in known:
        raise FieldFault(f"unknown format {value!r}{nearest(name, known)}", f"formats: {', '.join(known)}")
    return name


class SourceConfig(BaseModel):
    """One source of rows."""

    model_config = _STRICT

    path: str = Field(min_length=1)
    """A file, a folder, a glob, a Hub dataset id, or `builtin:NAME`."""
    split: str | None = None
    """Which split of a Hub dataset, a saved dataset or a folder (default: train)."""
    revision: str | None = None
    """Commit, tag or branch of a Hub dataset."""
    weight: Annotated[float, Field(gt=0)] | None = None
    """Share of this source in an epoch, relative to the weights of the others. Give one to every source or to none."""
    rows: Annotated[int, Field(ge=1)] | None = None
    """At most this many rows, from the start of the source."""
    repeat: Annotated[int, Field(ge=1)] = 1
    """How often the rows of this source appear in an epoch."""
    format: str | None = None
    """The format of this source; default: `data.format`."""
    columns: dict[str, str] | None = None
    """Which of this source's columns plays which part; default: `data.columns`."""

    _known_format = field_validator("format", mode="before")(_format_name)


_NUMBER = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?%?")
AUTO = "auto"
"""`data.validation`: hold a share out of the training rows. A file of that name is `./auto`."""
HELD_OUT_SHARE = 0.05
HELD_OUT_ROWS = (20, 1000)
"""At least and at most, as far as a fifth of the rows reaches: fewer say little, more cost time at every evaluation."""


def held_out(rows: int) -> int:
    """Rows that `validation: auto` holds out of so many: 5 %, at least 20 and at most 1,000, never over a fifth."""
    low, high = HELD_OUT_ROWS
    return min(rows // 5, high, max(low, round(HELD_OUT_SHARE * rows)))


def _shape(value: Any) -> str:
    """Which member of a union a value means, so that an error speaks of that member only."""
    if isinstance(value, bool):
        return "path"
    if isinstance(value, int):
        return "count"
    if isinstance(value, float):
        return "fraction"
    if value == AUTO:
        return "auto"
    if isinstance(value, (dict, SourceConfig)):
        return "source"
    return "list" if isinstance(value, (list, tuple)) else "path"


_Path = Annotated[str, Field(min_length=1)]
_Entry = Annotated[
    Annotated[_Path, Tag("path")] | Annotated[SourceConfig, Tag("source")],
    Discriminator(lambda value: "source" if isinstance(value, (dict, SourceConfig)) else "path"),
]
_Entries = Annotated[list[_Entry], Field(min_length=1)]
_Train = Annotated[
    Annotated[_Path, Tag("path")] | Annotated[SourceConfig, Tag("source")] | Annotated[_Entries, Tag("list")],
    Discriminator(lambda value: shape if (shape := _shape(value)) in ("source", "list") else "path"),
]
_Validation = Annotated[
    Annotated[Literal["auto"], Tag("auto")]
    | Annotated[Annotated[float, Field(ge=0, lt=1)], Tag("fraction")]
    | Annotated[Annotated[int, Field(ge=0)], Tag("count")]
    | Annotated[_Path, Tag("path")]
    | Annotated[SourceConfig, Tag("source")]
    | Annotated[_Entries, Tag("list")],
    Discriminator(_shape),
]


class DataConfig(BaseModel):
    """What to train and validate on, and how rows become tokens and a loss mask."""

    model_config = _STRICT

    train: _Train
    """A path, glob, Hub id or builtin:NAME; or a list of sources with path, split, revision, weight, rows, repeat,
    format and columns."""
    validation: _Validation = AUTO
    """A fraction of the training rows, a count of them, or a source of its own. auto: 5 % are held out (at least 20 and
    at most 1,000 rows, never over a fifth); 0 or null: none, all rows are trained on. A stream has nothing to hold out."""
    format: str = "auto"
    """What a row is: messages, sharegpt, instruction, prompt-completion, text, segments, classification,
    token-classification, seq2seq or preference. `auto` looks at the columns and says why."""
    columns: dict[str, str] = {}
    """Which of your columns plays which part, e.g. `{prompt: question, completion: answer}`; `answers.text.0` is a path into
    one. Prompt and completion are a chat under a chat template; `format: segments` puts one after the other unwrapped."""
    max_length: Annotated[int, Field(ge=2)] = 1024
    """Longest row in tokens. Text: documents are joined and cut into rows of this length."""
    append_eos: bool = True
    """Puts an end token after each text document and after each completion. Chat templates bring their own."""
    truncation: Truncation = "auto"
    """What happens to a row longer than `max_length`: stop, drop it, cut it on the left or right, or split it. `auto`:
    split for text; else drop and count, and stop when over 5 % of the rows would go."""
    train_on: TrainOn = "completions"
    """Which tokens carry loss: every answer, the last answer only, or everything. Plain text is trained on whole."""
    thoughts: Thoughts = "train"
    """What becomes of the thought before an answer (`reasoning_content`, or `<think>...</think>` and its like in the text):
    train it as the answer, mask it with its marks, or a number: its weight beside the answer's. `thought_weight` in a
    message says it for that turn."""
    packing: bool = False
    """Puts several short rows into one sequence, where no token sees another row's and positions begin anew: less padding,
    the same gradients. Rows, not packs, count towards `batch_size`; `micro_batch_size` is then packs per forward pass, none
    longer than the longest row. Evaluation stays unpacked."""
    streaming: bool = False
    """Reads the source while training instead of before it, for sources larger than memory. Rows are shuffled in blocks
    of 8192; say how long with `training.max_steps`, and name a source for validation."""
    checks: dict[str, Severity] = {}
    """Severities of the data doctor's checks, e.g. `{duplicates: off}`: fail stops the run, warn reports, off skips."""

    _known_format = field_validator("format", mode="before")(_format_name)

    @field_validator("validation", mode="before")
    @classmethod
    def _nothing_is_none(cls, value: Any) -> Any:
        if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
            number = value.strip()
            alone = f"{float(number.removesuffix('%')) / 100:g}" if number.endswith("%") else number
            raise FieldFault(f"is the text {value!r}", f"write the number alone, {alone}, or ./{number} for a file")
        return 0 if value is None else value

    @field_validator("packing", mode="before")
    @classmethod
    def _no_auto_packing_yet(cls, value: Any) -> Any:
        if value == AUTO:
            raise FieldFault("packing: auto is not supported yet", "use true or false")
        return value

    @field_validator("checks", mode="before")
    @classmethod
    def _known_checks(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        named = {str(name).replace("_", "-"): severity for name, severity in value.items()}
        for name in named:
            if name not in check_names():
                raise FieldFault(
                    f"unknown check {name!r}{nearest(name, check_names())}", f"checks: {', '.join(check_names())}"
                )
        return named

    @model_validator(mode="after")
    def _a_stream_has_no_rows_to_split_off(self) -> DataConfig:
        if self.streaming and isinstance(self.validation, (int, float)) and self.validation:
            raise FieldFault(
                "validation: a share or count of rows cannot be split off a stream", "name a source for validation"
            )
        return self

    @model_validator(mode="after")
    def _weights_for_all_or_none(self) -> DataConfig:
        for key, sources in (("train", self.train_sources), ("validation", self.validation_sources)):
            weighted = [source for source in sources if source.weight is not None]
            if weighted and len(weighted) != len(sources):
                raise FieldFault(f"{key}: give a weight to every source or to none ({len(weighted)} of {len(sources)})")
            if len(weighted) == 1 and len(sources) == 1:
                raise FieldFault(
                    f"{key}: a weight means nothing with one source", "leave it out, or use rows or repeat"
                )
        return self

    @property
    def thought_share(self) -> float:
        """What the thoughts of an answer weigh beside the rest of it."""
        return float({"train": 1.0, "mask": 0.0}.get(str(self.thoughts), self.thoughts))

    @property
    def train_sources(self) -> tuple[SourceConfig, ...]:
        """The training sources in their long form."""
        return _sources(self.train)

    @property
    def validation_sources(self) -> tuple[SourceConfig, ...]:
        """The validation sources in their long form; none when validation is split off from train, or off."""
        return _sources(self.validation) if self._has_own_validation else ()

    @property
    def _has_own_validation(self) -> bool:
        return self.validation != AUTO and not isinstance(self.validation, (int, float))

    @property
    def may_validate(self) -> bool:
        """Whether the recipe asks for validation rows (a data set of a few rows may still have none to spare)."""
        if self.validation == AUTO:
            return not self.streaming
        return bool(self.validation)

    def rows_to_split_off(self, rows: int) -> float | int:
        """Which part of so many training rows is validated on: a fraction, a count, 0 for none."""
        if self.validation == AUTO:
            return 0 if self.streaming else held_out(rows)
        return self.validation if isinstance(self.validation, (int, float)) else 0


def _sources(value: Any) -> tuple[SourceConfig, ...]:
    entries = value if isinstance(value, list) else [value]
    return tuple(entry if isinstance(entry, SourceConfig) else SourceConfig(path=entry) for entry in entries)
