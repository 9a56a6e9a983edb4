"""The adapter's README.md: a model card as the Hugging Face Hub reads it, with measured numbers only.

It is made to be published, so no row of the data stands in it: samples are for the report, which stays with the run.

The front matter (https://huggingface.co/docs/hub/model-cards) is written by huggingface_hub's own class for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from peftcli.reports import numbers
from peftcli.reports.card_usage import CardPlace, reproduction, usage
from peftcli.reports.data_facts import SourceFacts, split_facts
from peftcli.reports.folder import RunFacts
from peftcli.reports.markdown import code, table
from peftcli.reports.record import RunRecord, StartRecord
from peftcli.reports.scores import Score, metric_label, scores
from peftcli.reports.visible import clipped

_OWN_BASES = "builtin:"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?\Z")
# a name, a label: longer ones would break the lists that the Hub shows them in
_MAX_VALUE = 200
_NO_LICENCE: Mapping[str, str] = MappingProxyType({})


def model_card(
    run: RunFacts,
    *,
    auto_class: str,
    pipeline: str | None,
    loads_with_peft: bool = True,
    served_as_lora: bool = False,
    licence: Mapping[str, str] = _NO_LICENCE,
    place: CardPlace | None = None,
) -> str:
    """The whole README.md. `auto_class` and `pipeline` are the task's: the class that opens the base, and the Hub's word
    for what it does. `loads_with_peft`: whether Hugging Face PEFT has the method, `served_as_lora`: whether servers that
    take LoRA files take its files. `licence`: the base's, under the keys of the front matter. `place`: the repository that
    the card is for; None: it lies beside its run."""
    record = run.record
    measured = [score for score in scores(record) if score.tuned is not None]
    parts = [
        front_matter(run, measured, pipeline=pipeline, loads_with_peft=loads_with_peft, licence=licence),
        f"# {code(run.name)}",
        f"An adapter ({code(record.method)}) for {code(base_name(record.base))}, trained with peftcli.",
        _results(measured, record),
        usage(
            record.base if is_hub_id(record.base) else None,
            place=place,
            auto_class=auto_class if loads_with_peft else None,
            served_as_lora=served_as_lora,
            comes_along=record.base.startswith(_OWN_BASES),
        ),
        _data(record),
        _training(record),
        "" if place is None else reproduction(place, record),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def front_matter(
    run: RunFacts,
    measured: Sequence[Score],
    *,
    pipeline: str | None,
    loads_with_peft: bool = True,
    licence: Mapping[str, str] = _NO_LICENCE,
) -> str:
    """YAML between `---` lines. A base that is a folder or ships with the package is no Hub id and is left out."""
    # imported when a card is written: reading a record needs no hub library
    from huggingface_hub import EvalResult, ModelCardData

    record = run.record
    results = [
        EvalResult(
            task_type=_plain(pipeline or record.task),
            dataset_type="held-out",
            dataset_name="held-out rows of the training recipe",
            metric_type=_plain(score.metric.removeprefix("eval_")),
            metric_name=_plain(metric_label(score.metric)),
            metric_value=score.tuned,
        )
        for score in measured
    ]
    card = ModelCardData(
        base_model=record.base if is_hub_id(record.base) else None,
        # the rows are nobody's published data set; the Hub asks for a name all the same
        library_name="peft" if loads_with_peft else "peftcli",
        pipeline_tag=pipeline,
        tags=[_plain(text) for text in dict.fromkeys(["peftcli", record.method])],
        metrics=[result.metric_type for result in results] or None,
        # a model without results must not have a name either: the two make one entry of the model index
        model_name=_plain(run.name) if results else None,
        eval_results=results or None,
        license=licence.get("license"),
        license_name=licence.get("license_name"),
        license_link=licence.get("license_link"),
    )
    return f"---\n{card.to_yaml().strip()}\n---"


def is_hub_id(base: str) -> bool:
    """Whether a base can be linked on the Hub (`owner/name` or one of the old single names)."""
    # `..` is letters and dots to the expression, and no name on the Hub
    return bool(_HUB_ID.match(base)) and ".." not in base


def base_name(base: str) -> str:
    """A Hub id or built-in name as it is; of a folder only its name, since paths tell about a machine."""
    return base if is_hub_id(base) or base.startswith(_OWN_BASES) else base.rstrip("/").rsplit("/", 1)[-1]


def _adapter_name(start: StartRecord) -> str:
    """Of the Hub as it is; of a folder its name and the hash of its tensors, since paths tell about a machine."""
    if is_hub_id(start.name.partition("@")[0]):
        return start.name
    tensors = start.files.get("adapter_model.safetensors", "")
    return f"{base_name(start.name)} (adapter_model.safetensors {tensors[:12]})"


def _plain(text: str) -> str:
    """One short line, with what is invisible shown."""
    return clipped(text, _MAX_VALUE, one_line=True)


def _results(measured: Sequence[Score], record: RunRecord) -> str:
    if not measured:
        return "## Results\n\nNothing was measured."
    rows = [
        [
            code(metric_label(score.metric)),
            score.value("base"),
            score.value("tuned"),
            _interval(score),
        ]
        for score in measured
    ]
    on_rows = f" on {record.evaluation.rows:,} held-out rows" if record.evaluation.rows else ""
    return f"## Results\n\nMeasured{on_rows}.\n\n{table(['Metric', 'Base', 'Tuned', '95 % interval'], rows)}"


def _interval(score: Score) -> str:
    if score.tuned_interval is None:
        # without an interval the column stays, so that all rows have one width
        return numbers.MISSING
    return " to ".join(score.shown(end) for end in score.tuned_interval)


def _data(record: RunRecord) -> str:
    """Where the rows came from and how many there are; none of them is shown."""
    rows = []
    for split in ("train", "validation"):
        facts = split_facts(record.data, split)
        rows += [] if facts is None else [_source_row(split, source) for source in facts.sources]
    return f"## Data\n\n{table(['Split', 'Source', 'Format', 'Rows', 'Tokens'], rows)}" if rows else ""


def _source_row(split: str, source: SourceFacts) -> list[str]:
    sizes = [numbers.MISSING if size is None else numbers.count(size) for size in (source.rows, source.tokens)]
    return [split, code(base_name(source.name)), code(source.format), *sizes]


def _training(record: RunRecord) -> str:
    parameters = record.parameters
    rows = [
        ["Method", code(record.method)],
        *([] if record.start is None else [["Continued from", code(_adapter_name(record.start))]]),
        ["Trained parameters", f"{numbers.count(parameters.trainable)} of {numbers.count(parameters.total)}"],
        ["Steps", numbers.count(record.steps)],
        ["Tokens", f"{numbers.count(record.tokens)}, {numbers.count(record.trained_tokens)} of them with loss"],
        ["Learning rate", f"{record.learning_rate:.3g}" if record.learning_rate is not None else numbers.MISSING],
        *([["Chat template", code(str(chat))]] if (chat := record.plan.get("chat")) else []),
        ["Seed", str(record.seed)],
        ["Training time", numbers.duration(record.seconds.training)],
        ["peftcli", code(record.version)],
    ]
    return f"## Training\n\n{table(['Fact', 'Value'], rows)}"
