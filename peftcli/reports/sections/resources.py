"""What the run cost: parameters, memory measured and predicted, time, throughput."""

from __future__ import annotations

from dataclasses import dataclass

from peftcli.reports import numbers
from peftcli.reports.folder import RunFacts
from peftcli.reports.plots.bars import Bar, bar_list
from peftcli.reports.plots.frame import Figure
from peftcli.reports.record import RunRecord
from peftcli.reports.sections.parts import Amount, Section

Pairs = list[tuple[str, Amount | str]]


@dataclass(frozen=True)
class Resources:
    """Lists of names and values, each pair one line, and a picture of the memory."""

    lists: list[Pairs]
    memory: Figure | None


def resources_section(run: RunFacts) -> Section:
    """Always there: every run has at least parameters and time."""
    record = run.record
    facts = Resources([_parameters(record), _time(record)], _memory(record))
    return Section("resources", "Resources", "report/resources.jinja", facts)


def _parameters(record: RunRecord) -> Pairs:
    trainable, total = record.parameters.trainable, record.parameters.total
    share = numbers.percent(trainable / total) if total else numbers.MISSING
    pairs: Pairs = [
        ("Trained parameters", Amount(trainable, numbers.count(trainable))),
        ("All parameters", Amount(total, numbers.count(total))),
        ("Share trained", share),
        ("Adapter on disk", Amount(record.adapter_bytes, numbers.data_size(record.adapter_bytes))),
    ]
    if record.learning_rate is not None:
        pairs.append(("Learning rate", Amount(record.learning_rate, f"{record.learning_rate:.3g}")))
    return pairs


def _time(record: RunRecord) -> Pairs:
    seconds = record.seconds
    pairs: Pairs = [
        ("Start-up", Amount(seconds.startup, numbers.duration(seconds.startup))),
        ("Training", Amount(seconds.training, numbers.duration(seconds.training))),
        ("Whole run", Amount(seconds.total, numbers.duration(seconds.total))),
        ("Throughput", Amount(record.tokens_per_second, f"{numbers.count(record.tokens_per_second)} tokens/s")),
        ("Tokens, trained", f"{record.tokens:,}, {record.trained_tokens:,}"),
    ]
    return pairs


def _memory(record: RunRecord) -> Figure | None:
    bars = [
        Bar("Peak, measured", float(record.peak_memory_bytes), numbers.data_size(record.peak_memory_bytes)),
        Bar(
            "Peak, predicted",
            float(record.predicted.peak_memory_bytes or 0),
            numbers.data_size(record.predicted.peak_memory_bytes),
            "quiet",
        ),
        Bar(
            "Base model loaded", float(record.model_memory_bytes), numbers.data_size(record.model_memory_bytes), "base"
        ),
    ]
    # a bar of nothing says "none", where it means "not measured"
    shown = [bar for bar in bars if bar.value > 0]
    if not shown:
        return None
    description = "; ".join(f"{bar.name} {bar.text}" for bar in shown)
    return Figure("Memory", bar_list("memory", "Memory", description, shown), style="flush")
