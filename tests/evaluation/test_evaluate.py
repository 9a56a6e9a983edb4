from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from peftcli.data.cases import Case
from peftcli.data.store import Origin, RowIndex, TokenColumns, TokenStore
from peftcli.errors import DataError, MemoryLimitError, ModelError, NumericalError
from peftcli.evaluation import evaluate as evaluate_module
from peftcli.evaluation.config import EvaluationConfig, GenerationConfig
from peftcli.evaluation.evaluate import evaluate
from peftcli.evaluation.generate import GeneratedAnswer, generate
from peftcli.evaluation.result import compare
from peftcli.tasks.registry import task

TASK = task("causal-lm")
GENERATION = GenerationConfig(max_new_tokens=5)


def build_store(tokenizer: Any, lengths: tuple[int, ...] = (12, 5, 30, 8, 21, 3, 17, 9)) -> TokenStore:
    """Rows of two sources, alternating: a prompt of a third of the row, then its answer and an end token."""
    generator = np.random.default_rng(0)
    tokens, weights = [], []
    for length in lengths:
        ids = generator.integers(0, 250, length)
        ids[-1] = tokenizer.eos_token_id
        tokens.append(ids)
        weights.append((np.arange(length) >= max(1, length // 3)).astype(np.float32))
    ends = np.cumsum(lengths)
    count = len(lengths)
    index = RowIndex(
        column=np.zeros(count, np.int32),
        start=ends - np.array(lengths),
        length=np.array(lengths),
        source=np.arange(count) % 2,
        file=np.arange(count) % 2,
        line=np.arange(count) + 1,
    )
    columns = TokenColumns(np.concatenate(tokens).astype(np.int32), np.concatenate(weights))
    return TokenStore([columns], index, ["one.jsonl", "two.jsonl"])


def cases_of(store: TokenStore, tokenizer: Any, limit: int) -> list[Any]:
    cases = []
    for row in list(store)[:limit]:
        start = int(np.flatnonzero(row.weights)[0])
        prompt, answer = row.input_ids[:start].tolist(), row.input_ids[start:].tolist()
        cases.append(
            SimpleNamespace(
                prompt_ids=prompt,
                prompt_text=tokenizer.decode(prompt),
                reference_ids=np.array(answer),
                reference_text=tokenizer.decode(answer, skip_special_tokens=True),
                origin=row.origin,
            )
        )
    return cases


@pytest.fixture
def store(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> TokenStore:
    monkeypatch.setattr(evaluate_module, "generation_cases", cases_of)
    return build_store(tokenizer)


def run(
    model: Any, store: TokenStore, tokenizer: Any, *, generation: GenerationConfig = GENERATION, **changes: Any
) -> Any:
    extra = {key: changes.pop(key) for key in ("with_samples", "seed", "progress") if key in changes}
    config = EvaluationConfig(**{"samples": 0, "batch_size": 3, **changes})
    return evaluate(model, TASK, store, tokenizer, config=config, generation=generation, pad_token_id=0, **extra)


def test_the_loss_is_weighted_by_token(model: Any, tokenizer: Any, store: TokenStore) -> None:
    found = run(model, store, tokenizer, metrics=["perplexity", "token_accuracy"])
    total = hits = count = 0.0
    for row in store:
        ids, trained = torch.tensor(row.input_ids, dtype=torch.int64), torch.tensor(row.weights[1:] > 0)
        with torch.no_grad():
            logits = model(ids[None]).logits[0, :-1].double()
        nll = -logits.log_softmax(-1).gather(1, ids[1:, None]).squeeze(1)
        total += nll[trained].sum().item()
        hits += int((logits.argmax(-1) == ids[1:])[trained].sum())
        count += int(trained.sum())
    assert list(found.metrics) == ["eval_loss", "eval_perplexity", "eval_token_accuracy"]
    assert found.metrics["eval_loss"] == pytest.approx(total / count, rel=1e-6)
    assert found.metrics["eval_perplexity"] == pytest.approx(np.exp(total / count), rel=1e-5)
    assert found.metrics["eval_token_accuracy"] == hits / count
    assert (found.rows, found.trained_tokens, found.samples) == (8, count, [])
    for name, value in found.metrics.items():
        low, high = found.intervals[name]
        assert low < value < high


def test_batches_do_not_change_scores(model: Any, tokenizer: Any, store: TokenStore) -> None:
    one, all_at_once = (run(model, store, tokenizer, batch_size=size) for size in (1, 8))
    assert one.metrics["eval_loss"] == pytest.approx(all_at_once.metrics["eval_loss"], rel=1e-6)
    np.testing.assert_allclose(one.tables["eval_loss"].numbers, all_at_once.tables["eval_loss"].numbers, rtol=1e-5)


def test_rows_are_the_first_ones(model: Any, tokenizer: Any, store: TokenStore) -> None:
    capped = run(model, store, tokenizer, rows=3)
    assert capped.rows == 3
    assert capped.metrics["eval_loss"] == pytest.approx(
        run(model, store.take(np.arange(3)), tokenizer).metrics["eval_loss"], rel=1e-9
    )
    assert run(model, store, tokenizer, rows=100).rows == 8


def test_the_model_and_the_generators_are_left_as_they_were(model: Any, tokenizer: Any, store: TokenStore) -> None:
    model.train()
    model.model.layers[0].eval()
    before = torch.get_rng_state()
    run(model, store, tokenizer, samples=2, generation=GenerationConfig(max_new_tokens=5, do_sample=True))
    assert torch.equal(before, torch.get_rng_state())
    assert model.training
    assert not model.model.layers[0].training
    model.eval()
    assert torch.is_grad_enabled()


def test_sources_are_scored_apart(model: Any, tokenizer: Any, store: TokenStore) -> None:
    found = run(model, store, tokenizer, metrics=["exact_match"])
    assert found.sources.keys() == {0, 1}
    assert sum(found.source_rows.values()) == found.rows
    for source in (0, 1):
        part = run(model, store.take(np.arange(source, 8, 2)), tokenizer)
        assert found.sources[source]["eval_loss"] == pytest.approx(part.metrics["eval_loss"], rel=1e-6)
        assert part.sources == {}
        assert "eval_exact_match" in found.sources[source]


def test_metrics_of_texts_score_every_row(model: Any, tokenizer: Any, store: TokenStore) -> None:
    found = run(model, store, tokenizer, metrics=["exact_match", "f1"], samples=2)
    cases = cases_of(store, tokenizer, 8)
    answers = generate(model, tokenizer, [case.prompt_ids for case in cases], config=GENERATION, batch_size=3)
    matches = [answer.text.strip() == case.reference_text.strip() for answer, case in zip(answers, cases, strict=True)]
    assert found.metrics["eval_exact_match"] == np.mean(matches)
    assert len(found.tables["eval_f1"].numbers) == 8
    assert [sample.prediction for sample in found.samples] == [answer.text for answer in answers[:2]]
    assert [sample.origin for sample in found.samples] == ["one.jsonl:1", "two.jsonl:2"]
    assert found.samples[0].reference == cases[0].reference_text


def test_an_exact_answer_counts(model: Any, tokenizer: Any, store: TokenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = cases_of(store, tokenizer, 8)
    answers = generate(model, tokenizer, [case.prompt_ids for case in cases], config=GENERATION)
    for case, answer in list(zip(cases, answers, strict=True))[:6]:
        case.reference_text = answer.text
    monkeypatch.setattr(evaluate_module, "generation_cases", lambda *_: cases)
    assert run(model, store, tokenizer, metrics=["exact_match"]).metrics["eval_exact_match"] >= 6 / 8


def test_samples_pass_over_rows_that_do_not_fit(
    model: Any, tokenizer: Any, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # prompts of at most 7 tokens fit: that of row 3 has 10
    monkeypatch.setattr(model.config, "max_position_embeddings", 7 + GENERATION.max_new_tokens)
    samples = run(model, store, tokenizer, samples=4).samples
    assert [sample.origin for sample in samples] == ["one.jsonl:1", "two.jsonl:2", "two.jsonl:4", "one.jsonl:5"]
    assert run(model, store, tokenizer, samples=4, with_samples=False).samples == []
    with pytest.raises(DataError) as caught:
        run(model, store, tokenizer, metrics=["exact_match"])
    assert [fault.where for fault in caught.value.faults] == ["one.jsonl:3"]


def test_a_loss_that_is_no_number_names_its_rows(
    model: Any, tokenizer: Any, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = TASK.score_rows

    def broken(model: Any, batch: Any) -> Any:
        part = scores(model, batch)
        part.sums[:] = np.where(batch["attention_mask"].sum(1).numpy() == 21, np.nan, part.sums)
        return part

    monkeypatch.setattr(type(TASK), "score_rows", lambda self, model, batch: broken(model, batch))
    with pytest.raises(NumericalError) as caught:
        run(model, store, tokenizer)
    assert [fault.where for fault in caught.value.faults] == ["one.jsonl:5"]


def test_nothing_to_score_is_an_error(model: Any, tokenizer: Any, store: TokenStore) -> None:
    with pytest.raises(DataError, match="nothing to evaluate"):
        run(model, store.take(np.arange(0)), tokenizer)


def test_out_of_memory_is_told(model: Any, tokenizer: Any, store: TokenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte")

    monkeypatch.setattr(type(TASK), "score_rows", full)
    with pytest.raises(MemoryLimitError, match="out of memory while evaluating") as caught:
        run(model, store, tokenizer)
    assert caught.value.fix == "a smaller evaluation.batch_size"


def test_progress_counts_rows(model: Any, tokenizer: Any, store: TokenStore) -> None:
    told: list[tuple[str, int, int]] = []
    run(model, store, tokenizer, progress=lambda *rows: told.append(rows), samples=0)
    assert told == [("score", 3, 8), ("score", 6, 8), ("score", 8, 8)]
    told.clear()
    run(model, store, tokenizer, progress=lambda *rows: told.append(rows), metrics=["exact_match"])
    assert told[3:] == [("answer", 3, 8), ("answer", 6, 8), ("answer", 8, 8)]


def test_a_paired_comparison_sees_what_two_intervals_do_not(model: Any, tokenizer: Any, store: TokenStore) -> None:
    base = run(model, store, tokenizer)
    weight = model.lm_head.weight.detach().clone()
    with torch.no_grad():
        model.lm_head.weight.mul_(0.97)
    tuned = run(model, store, tokenizer)
    with torch.no_grad():
        model.lm_head.weight.copy_(weight)
    difference = compare(base, tuned)["eval_loss"]
    assert difference.delta == pytest.approx(tuned.metrics["eval_loss"] - base.metrics["eval_loss"])
    assert difference.lo <= difference.delta <= difference.hi < 0
    assert difference.verdict == "better"
    (base_low, _), (_, tuned_high) = base.intervals["eval_loss"], tuned.intervals["eval_loss"]
    assert base_low < tuned_high  # the rows' own difficulty hides it
    same = compare(base, base)["eval_loss"]
    assert (same.delta, same.lo, same.hi, same.verdict) == (0.0, 0.0, 0.0, "unclear")
    back = compare(tuned, base)["eval_loss"]
    assert back.verdict == "worse"


def test_a_comparison_needs_the_same_rows(model: Any, tokenizer: Any, store: TokenStore) -> None:
    with pytest.raises(DataError, match="different rows"):
        compare(run(model, store, tokenizer), run(model, store, tokenizer, rows=4))


def test_the_data_rooms_own_cases_are_answered(model: Any, tokenizer: Any) -> None:
    store = build_store(tokenizer)
    found = run(model, store, tokenizer, metrics=["exact_match"], samples=8)
    assert [sample.origin for sample in found.samples] == [f"{store[r].origin.file}:{r + 1}" for r in range(8)]
    row = store[2]
    assert found.samples[2].prompt == tokenizer.decode(row.input_ids[:10])
    assert found.samples[2].reference == tokenizer.decode(row.input_ids[10:], skip_special_tokens=True)


def test_answers_that_their_length_ended_are_counted(model: Any, tokenizer: Any, store: TokenStore) -> None:
    short = run(model, store, tokenizer, metrics=["exact_match"], generation=GenerationConfig(max_new_tokens=1))
    assert (short.answered, short.cut, short.budget) == (8, 8, 1)
    assert all(sample.cut for sample in short.samples)


def test_the_budget_follows_from_the_answers(
    monkeypatch: pytest.MonkeyPatch, model: Any, tokenizer: Any, store: TokenStore
) -> None:
    asked: list[int] = []
    generate = model.generate

    def spy(**arguments: Any) -> Any:
        asked.append(model.generation_config.max_new_tokens)
        return generate(**arguments)

    monkeypatch.setattr(model, "generate", spy)
    found = run(model, store, tokenizer, metrics=["exact_match"], generation=GenerationConfig())
    assert found.budget == 64
    assert set(asked) - {None} == {64}, "without the looks at how the model pads"
    # where the context ends, so does the answer, instead of the run
    monkeypatch.setattr(model.config, "max_position_embeddings", 40)
    asked.clear()
    run(model, store, tokenizer, metrics=["exact_match"], generation=GenerationConfig())
    assert max(number for number in asked if number is not None) < 40


def test_a_loss_beyond_floats_has_an_infinite_perplexity_and_no_fault(
    model: Any, tokenizer: Any, store: TokenStore
) -> None:
    weight = model.lm_head.weight.detach().clone()
    with torch.no_grad():
        model.lm_head.weight.mul_(1e5)
    found = run(model, store, tokenizer, metrics=["perplexity"])
    with torch.no_grad():
        model.lm_head.weight.copy_(weight)
    assert found.metrics["eval_loss"] > 709
    assert found.metrics["eval_perplexity"] == float("inf")
    assert "eval_perplexity" not in found.intervals


def test_a_base_that_cannot_write_is_scored_without_samples(model: Any, tokenizer: Any, monkeypatch: Any) -> None:
    """Some families' own `generate` fails on every input; metrics of texts need it, metrics of the loss do not."""

    def broken(**kwargs: Any) -> Any:
        raise AttributeError("'BltConfig' object has no attribute 'num_hidden_layers'")

    monkeypatch.setattr(model, "generate", broken)
    store = build_store(tokenizer)
    found = evaluate(
        model, TASK, store, tokenizer, config=EvaluationConfig(samples=2), generation=GENERATION, pad_token_id=0
    )
    assert found.samples == []
    assert found.unanswered is not None
    assert "cannot write text in transformers" in found.unanswered
    assert found.metrics["eval_loss"] > 0
    with pytest.raises(ModelError, match="num_hidden_layers"):
        evaluate(
            model, TASK, store, tokenizer,
            config=EvaluationConfig(metrics=["exact_match"]), generation=GENERATION, pad_token_id=0,
        )  # fmt: skip


def test_a_failure_of_the_adapter_is_not_blamed_on_the_base(model: Any, tokenizer: Any, monkeypatch: Any) -> None:
    calls = []

    def broken_once(**kwargs: Any) -> Any:
        calls.append(kwargs)
        if len(calls) == 1:
            raise ValueError("ours")
        return torch.zeros(1, 1)

    monkeypatch.setattr(model, "generate", broken_once)
    with pytest.raises(ValueError, match="ours"):
        generate(model, tokenizer, [[5, 6, 7]], config=GENERATION)


def test_every_metric_gets_the_answer_alone(
    model: Any, make_tokenizer: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same rows with and without thoughts on either side have the same figures, in each metric of texts."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["[THINK]", "[/THINK]"], special_tokens=True)
    texts = ['{"a": 1}', "two words", "{", "the right one"]

    def scores(think_before: str, think_in_reference: str) -> dict[str, float]:
        cases = [
            Case(np.array([5]), "", ids_of(think_in_reference + text), think_in_reference + text, Origin(0, "rows", n))
            for n, text in enumerate(texts)
        ]
        written = [think_before + text for text in (*texts[:3], "the wrong one")]
        answers = [
            GeneratedAnswer(tokenizer.decode(ids_of(text), skip_special_tokens=True), ids_of(text).tolist(), "stop")
            for text in written
        ]
        monkeypatch.setattr(evaluate_module, "generation_cases", lambda *_: cases)
        monkeypatch.setattr(evaluate_module, "generate", lambda *_, **__: answers)
        config = EvaluationConfig(metrics=["exact_match", "f1", "chrf", "json_valid"], samples=0)
        found = evaluate(
            model, TASK, build_store(tokenizer, (12, 5, 30, 8)), tokenizer, config=config, generation=GenerationConfig(),
            pad_token_id=0,
        )  # fmt: skip
        return {name: value for name, value in found.metrics.items() if name != "eval_loss"}

    def ids_of(text: str) -> np.ndarray:
        return np.array(tokenizer(text, add_special_tokens=False)["input_ids"])

    plain = scores("", "")
    assert plain["eval_exact_match"] == 0.75
    assert plain["eval_json_valid"] == 0.25
    assert scores("[THINK]hm[/THINK]", "") == plain
    assert scores("", "<think>so</think>") == plain
    assert scores("<think>{}</think>", "[THINK]{}[/THINK]\n") == plain
