"""Scores a model on rows: metrics with intervals, per source, and a few samples of what it writes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import numpy as np

from peftcli.data.cases import Case, Written, answer_budget, generation_cases
from peftcli.data.store import EncodedRow, Origin, TokenStore
from peftcli.errors import DataError, Fault, ModelError, NumericalError, RecipeError
from peftcli.evaluation.config import EvaluationConfig, GenerationConfig
from peftcli.evaluation.generate import fits, generate
from peftcli.evaluation.memory import memory_errors
from peftcli.evaluation.metric import AnswerPair, Metric
from peftcli.evaluation.registry import REPORT_PREFIX, load_metrics
from peftcli.evaluation.result import AnswerSample, Evaluation, Table, intervals, values, values_by_source
from peftcli.evaluation.sharing import ALONE, Sharing, packed, turns, unpacked
from peftcli.evaluation.thoughts import answer_text
from peftcli.models.modes import evaluating
from peftcli.tasks.base import RowScores
from peftcli.tasks.labels.labelled import Labelled, joined
from peftcli.tasks.preferences.scores import Preferences
from peftcli.tasks.preferences.scores import joined as joined_preferences
from peftcli.tasks.vectors.found import Vectors
from peftcli.tasks.vectors.found import joined as joined_vectors

__all__ = ["Evaluation", "evaluate", "score"]

Progress = Callable[[str, int, int], None]
"""Receives what is done (`score` or `answer`), rows done and rows in all."""

SHOWN_ROWS = 3
"""Rows that an error names."""
_SCORES = ("sums", "weights", "correct", "targets")
Compared = tuple[np.ndarray, Preferences]
"""Numbers of rows, and what the model makes of their answers."""
_OF_KINDS = {
    "labels": "labels of the kind",
    "preferences": "rows that are",
    "likelihoods": "rows that are",
}
"""What metrics read whose meaning hangs on the kind of rows -> how a message names the kind."""


class ScoringTask(Protocol):
    """The part of a task that evaluation uses."""

    def collate(self, rows: Sequence[Any], *, pad_token_id: int) -> Any:
        """One batch of rows."""

    def score_rows(self, model: Any, batch: Any) -> RowScores:
        """The scores of each row of a batch."""

    def settled(self, scores: RowScores) -> RowScores:
        """The scores of all rows, with what each owes to the others."""

    def written(self, row: EncodedRow) -> EncodedRow:
        """A row as a prompt and an answer."""

    @property
    def compares_rows(self) -> bool:
        """Whether a row is worth what it is beside the others."""

    @property
    def metric_needs(self) -> tuple[str, ...]:
        """What it gives metrics to read."""

    @property
    def loss_unit(self) -> str:
        """What its loss is counted in."""

    @property
    def default_metrics(self) -> tuple[str, ...]:
        """What is measured where nobody says."""


def evaluate(
    model: Any,
    task: ScoringTask,
    store: TokenStore,
    tokenizer: Any,
    *,
    config: EvaluationConfig,
    generation: GenerationConfig,
    pad_token_id: int,
    device: Any = None,
    seed: int = 0,
    chat: bool = True,
    with_samples: bool = True,
    progress: Progress | None = None,
    sharing: Sharing = ALONE,
) -> Evaluation:
    """Scores the first `config.rows` rows of a store, and keeps `config.samples` of the answers to them.

    The loss is weighted by token. `device`: where to move the model first, None where it is in place. `chat`: whether
    rows went through the chat template, as for `generate`. Without
    `with_samples` nothing is written beyond what the metrics need (evaluations during training). The model's mode and
    the shared generators are as before afterwards. `sharing`: the processes that each score some of the batches, and
    return the same.

    Raises `DataError` where there is nothing to score or a prompt does not fit the context, `NumericalError` naming
    the rows whose loss is not finite, `DeviceError` for missing packages of metrics.
    """
    started = time.perf_counter()
    metrics = {
        name: replace(metric, unit=task.loss_unit) if metric.counts_loss else metric
        for name, metric in load_metrics(config.metrics).items()
    }
    if device is not None:
        model.to(device)
    store = store.take(np.arange(min(len(store), config.rows or len(store))))
    sizes = {"batch_size": config.batch_size, "pad_token_id": pad_token_id}
    scores = score(model, task, store, **sizes, progress=progress, sharing=sharing)
    matches = scores.vectors is not None and not scores.vectors.scored.all()
    metrics = applicable(metrics, task, scores.problem, matches=matches)
    writes = "generations" in task.metric_needs
    asked = Written(store, task.written)
    cases = _cases(metrics, asked, model, tokenizer, config, generation, with_samples=with_samples) if writes else []
    budget = answer_budget(asked) if generation.max_new_tokens == "auto" else generation.max_new_tokens
    answer = partial(_answer, cases, model, tokenizer, config, generation, budget=budget, seed=seed, chat=chat)
    answer = partial(answer, progress=progress, sharing=sharing)
    samples, unanswered = _samples_or_reason(answer, must=_compares_texts(metrics))
    tables = _score_tables(metrics, scores, store) | _answer_tables(metrics, samples, cases)
    return Evaluation(
        metrics=_numbers(values(tables)),
        intervals=intervals(tables),
        rows=len(store),
        trained_tokens=int(scores.targets.sum()),
        samples=samples[: config.samples] if with_samples else [],
        sources=values_by_source(tables),
        source_rows=_rows_by_source(store),
        seconds=time.perf_counter() - started,
        answered=len(samples),
        cut=sum(sample.cut for sample in samples),
        budget=budget if samples else None,
        unanswered=unanswered,
        tables=tables,
        labelled=scores.labelled,
    )


def score(
    model: Any,
    task: ScoringTask,
    store: TokenStore,
    *,
    batch_size: int,
    pad_token_id: int,
    progress: Progress | None = None,
    sharing: Sharing = ALONE,
) -> RowScores:
    """The scores of all rows of a store. Rows of like length share a batch, longest first, so memory peaks at once."""
    if not int(store.trained.sum()):
        raise DataError(
            "there is nothing to evaluate: no row has a token that carries loss", fix="check the validation data"
        )
    if task.compares_rows:
        # what one process has seen is compared with all there is: each sees everything
        sharing = ALONE
    rows = len(store)
    found = RowScores(np.zeros(rows), np.zeros(rows), np.zeros(rows), np.zeros(rows))
    said: list[Labelled] = []
    compared: list[Compared] = []
    vectors: list[Vectors] = []
    order = np.argsort(-store.lengths, kind="stable")
    cut = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    done = 0
    with evaluating(model), memory_errors("evaluating", "a smaller evaluation.batch_size"):
        for chosen, is_own in turns(cut, sharing):
            batch = task.collate([store[int(row)] for row in chosen], pad_token_id=pad_token_id)
            part = task.score_rows(model, batch)
            if not is_own:
                continue
            for name in _SCORES:
                getattr(found, name)[chosen] = getattr(part, name)
            if part.labelled is not None:
                said.append(replace(part.labelled, rows=chosen[part.labelled.rows]))
            if part.preferences is not None:
                compared.append((chosen, part.preferences))
            if part.vectors is not None:
                vectors.append(replace(part.vectors, rows=chosen[part.vectors.rows]))
            if progress:
                done = min(done + batch_size * sharing.size, len(order))
                progress("score", done, len(order))
    said, compared = _of_all(found, said, compared, sharing)
    found = replace(found, labelled=joined(said, rows) if said else None)
    found = replace(found, preferences=joined_preferences(compared, rows) if compared else None)
    found = task.settled(replace(found, vectors=joined_vectors(vectors, rows) if vectors else None))
    _require_finite(found.sums, store)
    return found


def _of_all(
    found: RowScores, said: list[Labelled], compared: list[Compared], sharing: Sharing
) -> tuple[list[Labelled], list[Compared]]:
    """Puts every process's scores into `found`, and returns what every one said of labels and of compared answers."""
    if sharing.size == 1:
        return said, compared
    labels = [{name: packed(getattr(part, name)) for name in ("rows", "scores", "truth")} for part in said]
    facts = [[part.names, part.problem, part.num_rows] for part in said]
    answers = [[packed(rows), *(packed(array) for array in part.arrays)] for rows, part in compared]
    mine = {name: packed(getattr(found, name)) for name in _SCORES}
    heard = sharing.meet("scores", [mine, labels, facts, answers])
    for name in _SCORES:
        # each row was scored by one process, and is zero with the others: the sum is exact
        getattr(found, name)[:] = sum(unpacked(scores[name]) for scores, *_ in heard)
    labels_of_all = [
        Labelled(tuple(names), problem, num_rows=rows, **{name: unpacked(array) for name, array in arrays.items()})
        for _, labels_of_one, facts_of_one, _ in heard
        for arrays, (names, problem, rows) in zip(labels_of_one, facts_of_one, strict=True)
    ]
    answers_of_all = [
        (unpacked(rows), Preferences.of_arrays([unpacked(array) for array in arrays]))
        for _, _, _, of_one in heard
        for rows, *arrays in of_one
    ]
    return labels_of_all, answers_of_all


def applicable(
    metrics: Mapping[str, Metric], task: ScoringTask, problem: str | None, *, matches: bool = False
) -> dict[str, Metric]:
    """The metrics that a task can be measured by; its own defaults are left out where its labels give them no meaning.

    `problem`: what its labels mean. `matches`: whether there are texts whose match is looked for.
    Raises `RecipeError` for any other metric that has none.
    """
    found = {}
    for name, metric in metrics.items():
        if metric.needs not in task.metric_needs:
            raise RecipeError(
                f"metric `{name}` reads {metric.needs}, which this task has none of",
                where="evaluation.metrics",
                fix="leave it out",
            )
        idle = metric.needs == "vectors" and not matches
        if idle and name not in task.default_metrics:
            raise RecipeError(
                f"metric `{name}` looks for the match of a text, and no validation row has one",
                where="evaluation.metrics",
                fix="leave it out",
            )
        if metric.needs in _OF_KINDS and problem not in metric.problems:
            if name in task.default_metrics:
                continue
            raise RecipeError(
                f"metric `{name}` has no meaning for {_OF_KINDS[metric.needs]} {problem}",
                where="evaluation.metrics",
                fix="leave it out" + (", or set classification.problem_type" if metric.needs == "labels" else ""),
            )
        if not idle:
            found[name] = metric
    return found


def _require_finite(sums: np.ndarray, store: TokenStore) -> None:
    wrong = [_place(store[int(row)].origin) for row in np.flatnonzero(~np.isfinite(sums))]
    if wrong:
        more = f" and {len(wrong) - SHOWN_ROWS:,} more" if len(wrong) > SHOWN_ROWS else ""
        raise NumericalError(
            f"the evaluation loss is not finite in {len(wrong):,} of {len(store):,} rows",
            where=", ".join(wrong[:SHOWN_ROWS]) + more,
            fix="the adapter's tensors or its lora_alpha are out of range (or the base is broken): train it again",
        )


def _numbers(metrics: dict[str, float]) -> dict[str, float]:
    """Metrics as they are, infinite ones too: the perplexity of a loss above 709 is beyond floats, and no fault."""
    faults = [Fault(f"{name} is {value}") for name, value in metrics.items() if np.isnan(value)]
    if faults:
        raise NumericalError("a metric is not a number", faults=faults)
    return metrics


def _compares_texts(metrics: Mapping[str, Metric]) -> bool:
    return any(metric.needs == "generations" for metric in metrics.values())


def _cases(
    metrics: Mapping[str, Metric],
    store: Written,
    model: Any,
    tokenizer: Any,
    config: EvaluationConfig,
    generation: GenerationConfig,
    *,
    with_samples: bool,
) -> list[Case]:
    """What has to be answered: every row where a metric compares texts, else a few rows whose prompt fits."""
    if _compares_texts(metrics):
        cases = generation_cases(store, tokenizer, len(store))
        if not cases:
            raise DataError("no row has an answer to compare with", fix="use metrics of the loss, such as perplexity")
        return list(cases)
    if not with_samples or not config.samples or not hasattr(model, "generate"):
        return []
    # rows that cannot be answered in full are passed over, so look further than the samples wanted
    candidates = generation_cases(store, tokenizer, 8 * config.samples)
    return [case for case in candidates if fits(model, list(case.prompt_ids), generation)][: config.samples]


def _answer(
    cases: Sequence[Case],
    model: Any,
    tokenizer: Any,
    config: EvaluationConfig,
    generation: GenerationConfig,
    *,
    budget: int,
    seed: int,
    chat: bool,
    progress: Progress | None,
    sharing: Sharing,
) -> list[AnswerSample]:
    origins = [_place(case.origin) for case in cases]
    prompts = [[int(token) for token in case.prompt_ids] for case in cases]
    answers = generate(
        model,
        tokenizer,
        prompts,
        config=generation,
        batch_size=config.batch_size,
        seed=seed,
        origins=origins,
        budget=budget,
        chat=chat,
        progress=None if progress is None else partial(progress, "answer"),
        sharing=sharing,
    )
    return [
        AnswerSample(
            case.prompt_text,
            case.reference_text,
            answer.text,
            origin,
            cut=answer.finish == "length",
            judged=AnswerPair(
                answer_text(tokenizer, answer.token_ids, answer.text),
                answer_text(tokenizer, case.reference_ids.tolist(), case.reference_text),
            ),
        )
        for case, answer, origin in zip(cases, answers, origins, strict=True)
    ]


def _samples_or_reason(
    answer: Callable[[], list[AnswerSample]], *, must: bool
) -> tuple[list[AnswerSample], str | None]:
    """The answers; or none, and why the model gives none. `must`: a metric compares them, so that the error is raised."""
    try:
        return answer(), None
    except ModelError as error:
        if must:
            raise
        # samples are to look at: a base that cannot write may still be trained and scored
        return [], error.message


def _score_tables(metrics: Mapping[str, Metric], scores: RowScores, store: TokenStore) -> dict[str, Table]:
    return (
        _loss_tables(metrics, scores, store)
        | _label_tables(metrics, scores, store)
        | _preference_tables(metrics, scores, store)
        | _vector_tables(metrics, scores, store)
    )


def _loss_tables(metrics: Mapping[str, Metric], scores: RowScores, store: TokenStore) -> dict[str, Table]:
    return {
        REPORT_PREFIX + name: Table(metric, metric.losses(scores), store.index.source)
        for name, metric in metrics.items()
        if metric.losses is not None
    }


def _label_tables(metrics: Mapping[str, Metric], scores: RowScores, store: TokenStore) -> dict[str, Table]:
    return {
        REPORT_PREFIX + name: Table(metric, metric.labels(scores.labelled), store.index.source)
        for name, metric in metrics.items()
        if metric.labels is not None and scores.labelled is not None
    }


def _preference_tables(metrics: Mapping[str, Metric], scores: RowScores, store: TokenStore) -> dict[str, Table]:
    found = {}
    for name, metric in metrics.items():
        look = metric.preferences or metric.likelihoods
        if look is not None and scores.preferences is not None:
            found[REPORT_PREFIX + name] = Table(metric, look(scores.preferences), store.index.source)
    return found


def _vector_tables(metrics: Mapping[str, Metric], scores: RowScores, store: TokenStore) -> dict[str, Table]:
    return {
        REPORT_PREFIX + name: Table(metric, metric.vectors(scores.vectors), store.index.source)
        for name, metric in metrics.items()
        if metric.vectors is not None and scores.vectors is not None
    }


def _answer_tables(
    metrics: Mapping[str, Metric], samples: Sequence[AnswerSample], cases: Sequence[Case]
) -> dict[str, Table]:
    answers = [sample.judged for sample in samples]
    sources = np.array([case.origin.source for case in cases])
    return {
        REPORT_PREFIX + name: Table(metric, metric.answers(answers), sources)
        for name, metric in metrics.items()
        if metric.answers is not None
    }


def _rows_by_source(store: TokenStore) -> dict[int, int]:
    numbers, counts = np.unique(store.index.source, return_counts=True)
    return {int(number): int(count) for number, count in zip(numbers, counts, strict=True)}


def _place(origin: Origin) -> str:
    return f"{origin.file}:{origin.line}"
