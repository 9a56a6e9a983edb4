"""What a report shows of data and answers: rows with what is trained, samples of both models, scores by source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from peftcli.data.facts import DataFacts
from peftcli.data.preview import row_spans
from peftcli.data.store import EncodedRow
from peftcli.evaluation.result import AnswerSample, Evaluation
from peftcli.planning.plan import Prepared
from peftcli.reports.record import DataRow, Sample, SourceScores, Span

ROWS_SHOWN = 4


def shown_rows(prepared: Prepared, count: int = ROWS_SHOWN) -> list[DataRow]:
    """The first training rows as the model sees them, from the very tensors that training gets."""
    store = prepared.data.train
    return [shown_row(store[index], prepared.tokenizer) for index in range(min(count, len(store)))]


def shown_row(row: EncodedRow, tokenizer: Any) -> DataRow:
    """One row, by pieces of text that are trained, context or special."""
    spans = [
        Span(
            text=span.text,
            kind=span.kind,
            trained=span.trained if span.kind == "special" else None,
            weight=span.uneven,
        )
        for span in row_spans(row, tokenizer)
    ]
    trained = max(int(np.count_nonzero(row.weights)), bool(row.labels))
    origin = f"{row.origin.file}:{row.origin.line}"
    return DataRow(spans=spans, origin=origin, tokens=len(row.input_ids), trained_tokens=trained)


def shown_samples(base: Evaluation, tuned: Evaluation) -> list[Sample]:
    """Each prompt once, answered by both."""
    answers = {(sample.origin, sample.prompt): sample.prediction for sample in base.samples}
    return [_sample(sample, answers.get((sample.origin, sample.prompt))) for sample in _unique(tuned.samples)]


def source_scores(base: Evaluation | None, tuned: Evaluation, facts: DataFacts) -> list[SourceScores]:
    """The metrics of each validation source; empty where there is only one."""
    if facts.validation is None:
        return []
    return [
        SourceScores(
            name=facts.validation.sources[number].name,
            rows=tuned.source_rows[number],
            base={} if base is None else base.sources.get(number, {}),
            tuned=metrics,
        )
        for number, metrics in tuned.sources.items()
    ]


def _unique(samples: Sequence[AnswerSample]) -> list[AnswerSample]:
    return list({(sample.origin, sample.prompt): sample for sample in samples}.values())


def _sample(sample: AnswerSample, base: str | None) -> Sample:
    return Sample(
        prompt=sample.prompt,
        reference=sample.reference,
        base=base,
        tuned=sample.prediction,
        origin=sample.origin,
    )
