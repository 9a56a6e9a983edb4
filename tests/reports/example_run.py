"""Made-up runs for the tests of the reports: the facts of a support-extraction run, and variations of it.

`planted(text)` is the same run with one text in every field that data, users or models can fill.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

from peftcli.evaluation.registry import metric_facts
from peftcli.reports.folder import RunFacts
from peftcli.reports.metric_facts import MetricFacts
from peftcli.reports.record import (
    Answers,
    DataRow,
    DifferenceRecord,
    EvaluationRecord,
    Event,
    ExpectResult,
    Failure,
    FindingRecord,
    Intervals,
    LayerUpdate,
    Parameters,
    Predicted,
    RunRecord,
    Sample,
    Seconds,
    Span,
)
from peftcli.reports.series import Series

STEPS = 300
RECIPE = """\
# Support requests to JSON records
model: builtin:base
data: builtin:support
method: {type: lora, r: 16}
training: {epochs: 3, batch_size: 16}
evaluation: {every: 50, metrics: [loss, exact_match, token_accuracy]}
"""
MODULES = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
PEOPLE = (("Mira", "router", "amber-fig-moss"), ("Jonas", "printer", "cedar-oat-rune"), ("Ada", "lamp", "dune-elm-ivy"))


def learning_curve(step: int, start: float = 2.9, end: float = 0.06) -> float:
    return end + (start - end) * math.exp(-step / 42)


def series(steps: int = STEPS, every: int = 50, seed: int = 7) -> Series:
    """A noisy falling loss, a warmed-up cosine rate, evaluations."""
    noise = random.Random(seed)
    train: dict[int, dict[str, float]] = {}
    for step in range(1, steps + 1):
        warm = min(1.0, step / 10)
        cosine = 0.5 * (1 + math.cos(math.pi * max(0, step - 10) / (STEPS - 10)))
        train[step] = {
            "loss": learning_curve(step) * (1 + 0.18 * noise.gauss(0, 1)) + 0.01,
            "learning_rate": 2e-3 * warm * cosine,
            "grad_norm": 0.35 + 1.6 * math.exp(-step / 30) + 0.12 * abs(noise.gauss(0, 1)),
            "tokens": 1500.0 * step,
            "trained_tokens": 400.0 * step,
            "seconds": 0.11 * step,
        }
    evaluations = {
        step: {
            "eval_loss": learning_curve(step, 3.1, 0.071),
            "eval_exact_match": 1 / (1 + math.exp(-(step - 110) / 22)) if step else 0.0,
            "eval_token_accuracy": 0.42 + 0.57 * (1 - math.exp(-step / 50)),
        }
        for step in range(0, steps + 1, every)
    }
    return Series(train, evaluations, [], 0)


def updates(blocks: int = 4) -> list[LayerUpdate]:
    size = random.Random(3)
    return [
        LayerUpdate(
            name=f"model.layers.{block}.{module}",
            norm=round(0.2 + 0.5 * size.random() + 0.08 * block, 4),
            relative=round(0.02 + 0.05 * size.random() + 0.01 * block, 5),
        )
        for block in range(blocks)
        for module in MODULES
    ]


def samples() -> list[Sample]:
    made = []
    for line, (person, thing, code) in enumerate(PEOPLE, start=3):
        reference = f'{{"name": "{person}", "product": "{thing}", "code": "{code}", "urgent": true}}'
        tuned = reference if line != 4 else reference.replace("true", "false").replace("oat", "oak")
        made.append(
            Sample(
                prompt=f"Hello, this is {person}. My {thing} with the code {code} stopped working, please hurry!",
                reference=reference,
                base=f"What is the {thing}? The {thing} is a {thing}. Thank you for your question, {person}.",
                tuned=tuned,
                origin=f"support.jsonl:{line}",
            )
        )
    return made


def rows() -> list[DataRow]:
    return [
        DataRow(
            origin=f"support.jsonl:{line}",
            tokens=61 + line,
            trained_tokens=33,
            spans=[
                Span(text="<|user|>", kind="special"),
                Span(text=f"Hello, this is {person}. My {thing} with the code {code} stopped working.", kind="context"),
                Span(text="<|assistant|>", kind="special"),
                Span(text=f'{{"name": "{person}", "product": "{thing}", "code": "{code}"}}', kind="trained"),
                Span(text="<|end|>", kind="special", trained=True),
            ],
        )
        for line, (person, thing, code) in enumerate(PEOPLE, start=1)
    ]


def source_facts(rows: int, tokens: int) -> dict[str, Any]:
    return {
        "name": "builtin:support",
        "format": "messages",
        "why": "every row has a list under `messages`",
        "files": [{"name": "support.jsonl", "sha256": "9c" * 32}],
        "rows_read": rows,
        "rows_kept": rows,
        "dropped": {},
        "rows": rows,
        "share": 1.0,
        "asked": None,
        "tokens": tokens,
    }


def data_facts() -> dict[str, Any]:
    return {
        "train": {
            "rows_read": 1620,
            "rows_kept": 1600,
            "dropped": {"longer than max_length": 12, "no trained token": 8},
            "rows": 1600,
            "tokens": 153_600,
            "trained_tokens": 41_200,
            "tokens_lost": 3_310,
            "trained_tokens_lost": 400,
            "quantiles": {"min": 21.0, "p50": 96.0, "p90": 171.0, "p99": 221.0, "max": 256.0, "mean": 98.41},
            "histogram": [[16 * i, 16 * (i + 1), n] for i, n in enumerate(HISTOGRAM)],
            "sources": [source_facts(1600, 153_600)],
            "order_sha256": "77" * 32,
            "stream_sha256": "5f1d" * 16,
        },
        "validation": {
            "rows_read": 240,
            "rows_kept": 240,
            "dropped": {},
            "rows": 240,
            "tokens": 23_100,
            "trained_tokens": 6_200,
            "tokens_lost": 0,
            "trained_tokens_lost": 0,
            "quantiles": {"min": 24.0, "p50": 95.0, "p90": 168.0, "p99": 213.0, "max": 240.0, "mean": 96.25},
            "histogram": [],
            "sources": [source_facts(240, 23_100)],
            "order_sha256": "12" * 32,
            "stream_sha256": "ab01" * 16,
        },
        "tokenizer_sha256": "31" * 32,
        "max_length": 256,
    }


HISTOGRAM = (0, 4, 31, 118, 240, 322, 301, 226, 148, 92, 57, 31, 17, 8, 4, 1)


def example_record(**changes: Any) -> RunRecord:
    facts: dict[str, Any] = {
        "status": "completed",
        "method": "lora",
        "task": "causal-lm",
        "base": "builtin:base",
        "seed": 42,
        "parameters": Parameters(trainable=147_456, total=1_052_288),
        "steps": STEPS,
        "tokens": 450_000,
        "trained_tokens": 120_000,
        "seconds": Seconds(startup=3.1, training=33.4, total=41.7),
        "tokens_per_second": 13_472.5,
        "peak_memory_bytes": 612 << 20,
        "model_memory_bytes": 401 << 20,
        "predicted": Predicted(peak_memory_bytes=590 << 20, seconds=35.0),
        "adapter_bytes": 592_112,
        "evaluation": EvaluationRecord(
            base={"eval_loss": 3.0994, "eval_exact_match": 0.0, "eval_token_accuracy": 0.4231},
            tuned={"eval_loss": 0.07342, "eval_exact_match": 0.9458, "eval_token_accuracy": 0.9872},
            intervals=Intervals(
                base={
                    "eval_loss": (2.981, 3.214),
                    "eval_exact_match": (0.0, 0.0157),
                    "eval_token_accuracy": (0.401, 0.447),
                },
                tuned={
                    "eval_loss": (0.0581, 0.0902),
                    "eval_exact_match": (0.9092, 0.9683),
                    "eval_token_accuracy": (0.981, 0.992),
                },
            ),
            facts=facts_of("eval_loss", "eval_exact_match", "eval_token_accuracy"),
            headline="eval_exact_match",
            differences={
                "eval_loss": better(-3.026, (-3.15, -2.9)),
                "eval_exact_match": better(0.9458, (0.908, 0.968), test="McNemar's exact test", p=1e-60),
                "eval_token_accuracy": better(0.5641, (0.54, 0.588)),
            },
            answers_tuned=Answers(count=240, cut=0),
            answer_budget=64,
            rows=240,
        ),
        "warnings": ["`tokenizer.pad_token` is not set; the end-of-text token is used for padding, outside the loss"],
        "name": "support",
        "version": "0.1.0",
        "started": "2026-11-23T10:15:00+01:00",
        "adapter": "adapter",
        "planned_steps": STEPS,
        "epochs": 3.0,
        "learning_rate": 2e-3,
        "settings": {"device": "cpu", "precision": "fp32", "micro_batch_size": 16, "threads": 2, "max_grad_norm": 1.0},
        "updates": updates(),
        "events": [Event(event="resume", step=150, message="from checkpoints/step-00000150")],
        "environment": {
            "python": "3.11.9",
            "torch": "2.13.0+cpu",
            "transformers": "5.23.0",
            "accelerate": "1.15.0",
            "system": "Linux x86_64",
            "cpu": "2 cores",
        },
        "data": data_facts(),
        "plan": {"steps": STEPS, "steps_per_epoch": 100, "memory": {"model": 401 << 20, "activations": 150 << 20}},
        "samples": samples(),
        "rows": rows(),
        "expect": [ExpectResult(metric="eval_loss", wanted="< 0.1", found=0.07342, held=True)],
    }
    return RunRecord(**{**facts, **changes})


def findings() -> list[FindingRecord]:
    return [
        FindingRecord(
            check="duplicates",
            severity="warn",
            message="14 rows are exact copies of another row",
            file="support.jsonl",
            row=210,
            count=14,
        ),
        FindingRecord(
            check="empty_completion",
            severity="info",
            message="one completion is a single word",
            file="support.jsonl",
            row=811,
        ),
    ]


def example_run(**changes: Any) -> RunFacts:
    return RunFacts(example_record(**changes), series(), findings(), RECIPE, "support-001")


def bare_run(**changes: Any) -> RunFacts:
    """The least that a record may hold."""
    facts = {"status": "completed", "method": "lora", "task": "causal-lm", "base": "b", "seed": 0, **changes}
    return RunFacts(RunRecord.model_validate(facts))


def failed_run() -> RunFacts:
    message = (
        "error: the loss is not finite at step 120\n  at RUN/data/batch-00000120.json\n"
        "  fix: lower training.learning_rate, or set training.on_nonfinite: skip"
    )
    record = example_record(
        status="failed",
        steps=119,
        evaluation=EvaluationRecord(base={"eval_loss": 3.0994}),
        failure=Failure(error="NumericalError", exit_code=8, message=message),
        adapter=None,
        adapter_bytes=0,
        updates=[],
        samples=[],
        expect=[],
        events=[],
    )
    logged = series(steps=119)
    logged.train[120] = {"loss": math.nan, "grad_norm": math.nan, "learning_rate": 1.5e-3}
    return RunFacts(record, logged, findings(), RECIPE, "support-002")


def facts_of(*names: str) -> dict[str, MetricFacts]:
    """What our own metrics say of themselves."""
    return {name: metric_facts(name) for name in names}


def better(
    delta: float, interval: tuple[float, float], test: str = "paired bootstrap over rows", p: float | None = None
):
    return DifferenceRecord(delta=delta, interval=interval, test=test, p=p, verdict="better")


def interrupted_run() -> RunFacts:
    failure = Failure(error="Interrupted", exit_code=130, message="stopped by SIGINT after checkpoint step-00000140")
    record = example_record(
        status="interrupted", steps=140, failure=failure, evaluation=EvaluationRecord(), samples=[], expect=[]
    )
    return RunFacts(record, series(steps=140), findings(), RECIPE, "support-003")


def sibling_runs() -> list[RunFacts]:
    """Three methods on the same data, for comparisons."""
    runs = [example_run()]
    for index, (method, loss, match, trained) in enumerate(
        (("bottleneck", 0.213, 0.8417, 61_000), ("prompt_tuning", 2.41, 0.0208, 2_560)), start=1
    ):
        record = example_record(
            name=f"support-{method}",
            method=method,
            evaluation=EvaluationRecord(
                base={"eval_loss": 3.0994, "eval_exact_match": 0.0},
                tuned={"eval_loss": loss, "eval_exact_match": match},
                intervals=Intervals(
                    base={"eval_loss": (2.981, 3.214), "eval_exact_match": (0.0, 0.0157)},
                    tuned={"eval_loss": (loss * 0.9, loss * 1.1), "eval_exact_match": (match * 0.95, match * 1.05)},
                ),
                facts=facts_of("eval_loss", "eval_exact_match"),
                headline="eval_exact_match",
                differences={
                    "eval_loss": better(loss - 3.0994, (loss - 3.2, loss - 3.0)),
                    "eval_exact_match": better(match, (match * 0.9, match * 1.1)),
                },
                rows=240,
            ),
            parameters=Parameters(trainable=trained, total=1_052_288),
            adapter_bytes=trained * 4 + 900,
            seconds=Seconds(startup=3.0, training=30.0 + 2 * index, total=40.0),
        )
        slower = series(seed=index)
        for values in slower.train.values():
            values["loss"] = values["loss"] * 0.6 + 0.35 * index
        for values in slower.evaluations.values():
            values["eval_loss"] = values["eval_loss"] * 0.6 + 0.4 * index
        runs.append(replace(example_run(), record=record, series=slower, label=f"support-{method}"))
    return runs


def planted(text: str) -> RunFacts:
    """The example with `text` wherever a text may come from data, a model, a file name or the machine."""
    record = example_record(
        name=text,
        base=text,
        version=text,
        started=text,
        method=text,
        task=text,
        warnings=[text, text],
        settings={text: text},
        environment={text: text, "list": [text], "nested": {text: text}},
        data={**data_facts(), text: {text: text}},
        plan={text: text},
        events=[Event(event=text, step=1, message=text)],
        updates=[LayerUpdate(name=f"model.layers.{block}.{text}", norm=1.0 + block) for block in range(2)],
        samples=[Sample(prompt=text, reference=text, base=text, tuned=text, origin=text)],
        rows=[
            DataRow(
                origin=text,
                spans=[
                    Span(text=text, kind="context"),
                    Span(text=text, kind="special"),
                    Span(text=text, kind="trained"),
                ],
            )
        ],
        failure=Failure(error=text, exit_code=8, message=text),
        expect=[ExpectResult(metric=text, wanted=text, found=1.0, held=True)],
        evaluation=EvaluationRecord(
            base={"eval_loss": 3.0, f"eval_{text}": 1.0},
            tuned={"eval_loss": 2.0, f"eval_{text}": 2.0},
            rows=100,
        ),
    )
    logged = series(steps=40, every=20)
    for step, values in logged.evaluations.items():
        values[f"eval_{text}"] = 1.0 + step
    logged.events.append({"event": text, "step": 3})
    finding = FindingRecord(check=text, severity="warn", message=text, file=text, row=1)
    return RunFacts(record, logged, [finding], text, text)
