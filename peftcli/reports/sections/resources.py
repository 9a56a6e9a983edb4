"""What the run cost: parameters, memory measured and predicted, time, throughput."""

from __future__ import annotations

from peftcli.reports import numbers
from peftcli.reports.folder import RunFacts
from peftcli.reports.markup import Child, Markup, tag
from peftcli.reports.plots.bars import Bar, bar_list
from peftcli.reports.plots.frame import figure
from peftcli.reports.record import RunRecord
from peftcli.reports.sections.parts import amount, facts_list, section


def resources_section(run: RunFacts) -> Markup:
    """Always there: every run has at least parameters and time."""
    record = run.record
    parts = [facts_list(_parameters(record)), facts_list(_time(record))]
    return section("resources", "Resources", tag("div", parts, class_="pair"), _memory(record))


def _parameters(record: RunRecord) -> list[tuple[str, Child]]:
    trainable, total = record.parameters.trainable, record.parameters.total
    share = numbers.percent(trainable / total) if total else numbers.MISSING
    pairs: list[tuple[str, Child]] = [
        ("Trained parameters", amount(trainable, numbers.count(trainable))),
        ("All parameters", amount(total, numbers.count(total))),
        ("Share trained", share),
        ("Adapter on disk", amount(record.adapter_bytes, numbers.data_size(record.adapter_bytes))),
    ]
    if record.learning_rate is not None:
        pairs.append(("Learning rate", amount(record.learning_rate, f"{record.learning_rate:.3g}")))
    return pairs


def _time(record: RunRecord) -> list[tuple[str, Child]]:
    seconds = record.seconds
    pairs: list[tuple[str, Child]] = [
        ("Start-up", amount(seconds.startup, numbers.duration(seconds.startup))),
        ("Training", amount(seconds.training, numbers.duration(seconds.training))),
        ("Whole run", amount(seconds.total, numbers.duration(seconds.total))),
        ("Throughput", amount(record.tokens_per_second, f"{numbers.count(record.tokens_per_second)} tokens/s")),
        ("Tokens, trained", f"{record.tokens:,}, {record.trained_tokens:,}"),
    ]
    return pairs


def _memory(record: RunRecord) -> Markup | None:
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
    shown = [bar for bar in bars if bar.value > 0]
    if not shown:
        return None
    description = "; ".join(f"{bar.name} {bar.text}" for bar in shown)
    return figure("Memory", bar_list("memory", "Memory", description, shown), style="flush")
