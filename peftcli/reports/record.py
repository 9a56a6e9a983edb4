"""The record of a run: `run.json`, its facts after the fact. Every rendering is made from it and never read back."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, PlainSerializer, ValidationError

from peftcli import files
from peftcli.errors import DataError, Fault
from peftcli.redaction import redacted, redacted_name, redacted_values
from peftcli.reports.metric_facts import MetricFacts
from peftcli.reports.seal import is_broken

# a record of many layers and samples has some megabytes; 64 still fit into memory
MAX_RECORD_BYTES = 64 << 20

Status = Literal["completed", "interrupted", "failed"]
"""How a run ended."""


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_finite_or_none)]
"""A measured number. None: not measured, or NaN or infinite, which JSON cannot hold and no reader should average."""

Interval = tuple[float, float]
"""Lower and upper end."""

Text = Annotated[str, PlainSerializer(redacted, return_type=str)]
"""Free text: written without the credentials that it may hold."""
Name = Annotated[str, PlainSerializer(redacted_name, return_type=str)]
"""A name or path of the user's: the same, but words of the environment stay, which are as well words of ours."""
Settings = Annotated[dict[str, JsonValue], PlainSerializer(redacted_values)]
"""Values by keys of our own; texts among them are names."""


class Facts(BaseModel):
    """Base of all parts of a record."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Parameters(Facts):
    """How many numbers the model has, and how many of them were trained."""

    trainable: int = 0
    total: int = 0
    """Base and adapter together."""


class Seconds(Facts):
    """Where the time of a run went."""

    startup: float = 0.0
    """From the start of the command to the first optimizer step."""
    training: float = 0.0
    total: float = 0.0


class Predicted(Facts):
    """What `peft plan` said beforehand, to be held against what was measured."""

    peak_memory_bytes: int | None = None
    seconds: Number = None


class Intervals(Facts):
    """95 % intervals by metric, for base and tuned model."""

    base: dict[str, Interval] = Field(default_factory=dict)
    tuned: dict[str, Interval] = Field(default_factory=dict)


class SourceScores(Facts):
    """The metrics on the rows of one of several sources."""

    name: Name
    rows: int
    base: dict[str, Number] = Field(default_factory=dict)
    tuned: dict[str, Number] = Field(default_factory=dict)


class DifferenceRecord(Facts):
    """Tuned minus base in one metric, compared on the same rows (or over seeds)."""

    delta: Number
    interval: Interval
    """95 %, of the difference."""
    test: str
    """How they were compared: `McNemar's exact test`, `paired bootstrap over rows`, `t over seeds`."""
    p: Number = None
    """Two-sided; None where the interval alone decides."""
    verdict: Literal["better", "worse", "unclear"]


class Answers(Facts):
    """Answers that were written for metrics and samples."""

    count: int = 0
    cut: int = 0
    """Those that ended at the budget and not by themselves."""


class EvaluationRecord(Facts):
    """Base and tuned model on the same rows."""

    base: dict[str, Number] = Field(default_factory=dict)
    tuned: dict[str, Number] = Field(default_factory=dict)
    """Of the adapter as saved: the best or the last, see `adapter_step`."""
    intervals: Intervals = Intervals()
    facts: dict[str, MetricFacts] = Field(default_factory=dict)
    """What each metric says of itself; a record of an older version lacks it, and its metrics are shown unjudged."""
    headline: str | None = None
    """The recipe's first metric beyond the loss, which a verdict names; None: the loss alone."""
    differences: dict[str, DifferenceRecord] = Field(default_factory=dict)
    answers_base: Answers = Answers()
    answers_tuned: Answers = Answers()
    answer_budget: int | None = None
    """New tokens that an answer could have."""
    leaked_rows: int = 0
    """Scored rows that were trained on too."""
    rows: int | None = None
    sources: list[SourceScores] = Field(default_factory=list)
    """Empty where all rows are of one source."""


class LayerUpdate(Facts):
    """How far the adapter moved one layer."""

    name: str
    norm: Number
    """Frobenius norm of the weight's change."""
    relative: Number = None
    """The same divided by the norm of the base weight; None where there is no base weight (prompts)."""


class Event(Facts):
    """Something that happened during a run and is not a measurement: a resume, a halved micro-batch, an early stop."""

    event: str
    step: int
    message: Text = ""


class Sample(Facts):
    """One held-out prompt, answered by base and tuned model."""

    prompt: Text
    reference: Text | None = None
    base: Text | None = None
    tuned: Text | None = None
    origin: Name = ""
    """`file:line` of the row."""


class Span(Facts):
    """A piece of a training row. `special`: control tokens of the tokenizer or the chat template."""

    text: Text
    kind: Literal["trained", "context", "special"]
    trained: bool | None = None
    """Whether a special token carries loss (the stop token does); None: it follows from the kind."""
    weight: float | None = None
    """The loss weight where it is another than 0 and 1."""


class DataRow(Facts):
    """One training row as the model sees it."""

    spans: list[Span]
    origin: Name = ""
    tokens: int | None = None
    trained_tokens: int | None = None


class FindingRecord(Facts):
    """A finding of the data doctor."""

    check: str
    severity: Literal["fail", "warn", "info"]
    message: Text
    file: Name | None = None
    row: int | None = None
    count: int = 1


class Failure(Facts):
    """Why a run failed or was interrupted."""

    error: str
    """Class name, e.g. `NumericalError`."""
    exit_code: int
    message: Text
    """As the command line shows it: what, where, what to do."""


class ExpectResult(Facts):
    """One gate of the recipe's `expect`."""

    metric: str
    wanted: str
    found: Number
    held: bool


class SeedRecord(Facts):
    """One run of several that differ by their seed."""

    seed: int
    folder: str
    """Within the run folder."""
    tuned: dict[str, Number] = Field(default_factory=dict)


class StartRecord(Facts):
    """The adapter that training went on from."""

    name: Name
    """As the recipe names it."""
    commit: str | None = None
    """Of the Hub."""
    files: dict[str, str]
    """SHA-256 of every file that was read of it."""
    evaluation: dict[str, Number] = Field(default_factory=dict)
    """What it scored before the first step."""


class RunRecord(Facts):
    """The facts of a run, as written to `run.json`. Bytes and seconds as the names say; tokens are non-padding."""

    status: Status
    method: str
    task: str
    base: Name
    seed: int
    parameters: Parameters = Parameters()
    steps: int = 0
    """Optimizer steps done, over all attempts."""
    tokens: int = 0
    trained_tokens: int = 0
    seconds: Seconds = Seconds()
    tokens_per_second: Number = 0.0
    peak_memory_bytes: int = 0
    model_memory_bytes: int = 0
    predicted: Predicted = Predicted()
    adapter_bytes: int = 0
    evaluation: EvaluationRecord = EvaluationRecord()
    warnings: list[Text] = Field(default_factory=list)

    start: StartRecord | None = None
    """None where the method started anew."""
    name: Name = ""
    version: str = ""
    """Of peftcli."""
    started: str = ""
    """ISO 8601 with offset."""
    adapter: str | None = None
    """Folder of the adapter, relative to the run; None when none was written."""
    adapter_files: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of each file of that folder, the card left out."""
    run_files: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of what a finished run has written beside this record, where it is read again."""
    adapter_step: int | None = None
    """The step whose tensors the adapter folder holds; None: the last."""
    planned_steps: int | None = None
    epochs: Number = None
    learning_rate: Number = None
    """The peak rate, `auto` resolved."""
    settings: Settings = Field(default_factory=dict)
    """Resolved `auto` values and other short settings worth a line: device, precision, micro_batch_size."""
    recipe: Settings = Field(default_factory=dict)
    """Every recipe key as the run took it, dotted, `auto` resolved."""
    updates: list[LayerUpdate] = Field(default_factory=list)
    events: list[Event] = Field(default_factory=list)
    environment: Settings = Field(default_factory=dict)
    data: Settings = Field(default_factory=dict)
    plan: Settings = Field(default_factory=dict)
    samples: list[Sample] = Field(default_factory=list)
    rows: list[DataRow] = Field(default_factory=list)
    """A few training rows, with what is trained."""
    failure: Failure | None = None
    expect: list[ExpectResult] = Field(default_factory=list)
    seeds: list[SeedRecord] = Field(default_factory=list)
    """The runs that this record sums up; its metrics are their means, its intervals are over seeds."""
    digest: str | None = None
    """SHA-256 of everything else in the file; None in memory."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, keys in the order of the fields."""
        return self.model_dump(mode="json")

    def to_json(self) -> str:
        """The text of `run.json`, without its seal."""
        return files.to_json(self.to_dict())

    def masked(self) -> RunRecord:
        """The record as it is written: without credentials in its texts."""
        return RunRecord.model_validate(self.to_dict())


def load_record(path: Path) -> RunRecord:
    """Reads `run.json` (or the one in a run folder). Raises `DataError` naming every fault of the file."""
    if path.is_dir():
        path = path / "run.json"
    if not path.is_file():
        raise DataError("there is no run record", where=str(path), fix="name a run folder, or a run.json in it")
    try:
        value = json.loads(files.read_bounded(path, limit_bytes=MAX_RECORD_BYTES))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"the run record is not JSON: {error}", where=str(path), fix="run the recipe again") from error
    # before the schema: a changed file is told as such, not as a value that does not fit
    if isinstance(value, dict) and is_broken(value):
        raise DataError(
            "the run record is not what the run wrote: its hash does not match",
            where=str(path),
            fix="put the file back, or run the recipe again",
        )
    try:
        return RunRecord.model_validate(value)
    except ValidationError as error:
        faults = [Fault(_describe(fault), where=str(path)) for fault in error.errors(include_url=False)]
        raise DataError("the run record does not fit this version of peftcli", faults=faults) from error


def _describe(fault: Any) -> str:
    key = ".".join(str(part) for part in fault["loc"]) or "the document"
    return f"{key}: {fault['msg'][:1].lower()}{fault['msg'][1:]}"
