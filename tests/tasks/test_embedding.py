"""Vectors of texts: what a row becomes, the loss whatever the cut, where matches stand, and a run up to a merged model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from label_bases import tokenizer, write_bert, write_llama
from safetensors.torch import load_file
from test_seq2seq_lm import write_t5

import peftcli
from peftcli import adapters
from peftcli.adapters.surgery import adapter_of
from peftcli.data.config import DataConfig
from peftcli.data.parts import is_frame, part, texts
from peftcli.data.prepare import PreparedData, prepare
from peftcli.errors import DataError, ModelError, PeftcliError, RecipeError
from peftcli.jobs.evaluate import evaluate_adapter
from peftcli.jobs.generate import Request
from peftcli.jobs.merge import merge_adapter
from peftcli.jobs.opening import open_adapter
from peftcli.jobs.vectors import embed_all
from peftcli.jobs.whole_models import open_to_answer
from peftcli.models.load import load_model
from peftcli.models.sentences import SentenceShape, read_shape, shape_files
from peftcli.models.source import resolve_base
from peftcli.recipe import load_recipe
from peftcli.tasks.config import EmbeddingConfig
from peftcli.tasks.registry import task
from peftcli.tasks.vectors.batches import joined
from peftcli.tasks.vectors.found import Vectors
from peftcli.tasks.vectors.losses import row_losses
from peftcli.tasks.vectors.pooling import pooled, unit
from peftcli.tasks.vectors.scoring import settled
from peftcli.tasks.vectors.sharing import shared

TASK = task("embedding").with_options(EmbeddingConfig(temperature=0.1)).for_base()
TRIPLETS = [
    {"anchor": "a red fox", "positive": "fox", "negative": "hen"},
    {"query": "blue whale", "positive": "whale", "negatives": ["ant", "bee"]},
    {"anchor": "a red fox", "positive": "vixen"},
    {"anchor": "one two three four", "positive": "count", "negative_1": "x", "negative_2": ""},
    {"sentence1": "hot", "sentence2": "warm", "score": 0.5},
]


def data_of(folder: Path, rows: list[dict[str, Any]], **keys: Any) -> PreparedData:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = {"validation": 0, "format": "embedding", "checks": {"duplicates": "off"}, **keys}
    config = DataConfig(train=str(path), **keys)
    return prepare(config, tokenizer=tokenizer(), folder=folder, seed=0, encoding=TASK.encoding)


def opened(folder: Path, write: Callable[[Path], Path] = write_bert) -> Any:
    return load_model(resolve_base(str(write(folder / "base")), folder=folder), auto_class=TASK.auto_class)


# -- rows --------------------------------------------------------------------------------------------------------


def test_texts_are_framed_one_by_one(tmp_path: Path) -> None:
    row = data_of(tmp_path, [{"query": "ab", "positive": "c", "negatives": ["d", "ef"]}]).train[0]
    told = tokenizer().convert_ids_to_tokens(row.input_ids.tolist())
    assert told == [
        "[CLS]",
        "a",
        "##b",
        "[SEP]",
        "[CLS]",
        "c",
        "[SEP]",
        "[CLS]",
        "d",
        "[SEP]",
        "[CLS]",
        "e",
        "##f",
        "[SEP]",
    ]
    assert texts(row.parts).tolist() == [0] * 4 + [1] * 3 + [2] * 3 + [3] * 4
    assert is_frame(row.parts).sum() == 8


def test_parts_of_many_texts_are_told_apart() -> None:
    numbers = np.array([part(text=text, type=1, frame=frame) for text in range(40) for frame in (False, True)])
    assert texts(numbers).tolist() == [text for text in range(40) for _ in range(2)]
    assert is_frame(numbers).tolist() == [False, True] * 40


def test_the_length_that_counts_is_that_of_a_text(tmp_path: Path) -> None:
    rows = [{"anchor": "abc", "positive": "defg", "negative": "h"}, {"anchor": "abcdef", "positive": "x"}]
    assert len(data_of(tmp_path, rows[:1], max_length=6).train) == 1
    with pytest.raises(DataError, match=r"1 of 2 rows .* the longest has 8 tokens"):
        data_of(tmp_path, rows, max_length=6)
    for side, kept in (("right", "a ##b ##c ##d"), ("left", "##c ##d ##e ##f")):
        row = data_of(tmp_path, rows, max_length=6, truncation=side).train[1]
        inner = row.input_ids[(texts(row.parts) == 0) & ~is_frame(row.parts)]
        assert tokenizer().convert_ids_to_tokens(inner.tolist()) == kept.split()


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"anchor": "a", "positive": " "}, "'positive' is empty"),
        ({"anchor": "a", "positive": "b", "negative": "b"}, "same text as 'positive'"),
        ({"anchor": "a", "positive": "b", "negative": 3}, "'negative' is a number"),
        ({"sentence1": "a", "sentence2": "b", "score": 4.5}, "a cosine lies between"),
        ({"sentence1": "a", "sentence2": "b", "score": "high"}, "not a number"),
        ({"sentence1": "a", "sentence2": "b"}, "'score' is missing"),
    ],
)
def test_rows_that_cannot_be_compared_are_told(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        data_of(tmp_path, [row])


def test_formats_are_seen_by_their_columns(tmp_path: Path) -> None:
    for row in TRIPLETS:
        assert data_of(tmp_path, [row], format="auto").facts.train.sources[0].format == "embedding"


# -- the loss ----------------------------------------------------------------------------------------------------


def plain_losses(vectors: np.ndarray, rows: list[dict[str, Any]]) -> list[float]:
    """Row by row, as the formula says, from the texts themselves."""
    table, at = [], 0
    for row in rows:
        values = [each for value in row.values() for each in (value if isinstance(value, list) else [value])]
        names = [name for name in values if isinstance(name, str) and name]
        table.append([*zip(names, vectors[at : at + len(names)], strict=True)])
        at += len(names)
    looked_for = [each for row, each in zip(rows, table, strict=True) if "score" not in row]
    candidates = [text for each in looked_for for text in each[1:]]
    found = []
    for row, own in zip(rows, table, strict=True):
        cosine = cosine_of(own[0][1], own[1][1])
        if "score" in row:
            found.append((cosine - row["score"]) ** 2)
            continue
        matches = {other[1][0] for other in looked_for if other[0][0] == own[0][0]}
        others = [cosine_of(own[0][1], vector) for name, vector in candidates if name not in matches]
        found.append(-math.log(math.exp(cosine / 0.1) / sum(math.exp(each / 0.1) for each in [cosine, *others])))
    return found


def cosine_of(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def test_the_loss_is_the_formula(tmp_path: Path) -> None:
    # a match of another row too, and the match of an equal anchor: neither is a negative
    rows = [*TRIPLETS, {"anchor": "renard", "positive": "fox"}]
    store = data_of(tmp_path, rows).train
    batch = TASK.collate(list(store), pad_token_id=0)
    vectors = torch.randn(len(batch["row"]), 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = row_losses(vectors, batch, 0.1)
    wanted = plain_losses(vectors.numpy(), [rows[store.origin(row).line - 1] for row in range(len(store))])
    assert found.tolist() == pytest.approx(wanted, abs=1e-10)
    assert row_losses(vectors, batch, 0.1, chunk=2).tolist() == pytest.approx(found.tolist(), abs=1e-12)


@pytest.mark.parametrize("micro", [1, 2, 3])
def test_the_gradient_is_that_of_the_whole_batch(tmp_path: Path, micro: int) -> None:
    """In float64, so that what is left is the cut and not the rounding; with dropout, whose draws are each part's own."""
    model = opened(tmp_path).double().train()
    rows = list(data_of(tmp_path, TRIPLETS).train)
    parts = [TASK.collate(rows[start : start + micro], pad_token_id=0) for start in range(0, len(rows), micro)]

    def seeded(number: int, forward: Callable[[], torch.Tensor]) -> torch.Tensor:
        torch.manual_seed(number)
        return forward()

    def gradients() -> torch.Tensor:
        found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        model.zero_grad()
        return found

    def embed(number: int) -> torch.Tensor:
        return seeded(number, lambda: TASK.logits(model, parts[number]))

    total = row_losses(torch.cat([embed(number) for number in range(len(parts))]), joined(parts), 0.1).sum()
    total.backward()
    wanted = gradients()
    losses = []
    for number, each in enumerate(TASK.share(model, parts, seeded)):
        loss = seeded(number, lambda each=each: TASK.loss(model, each).total)  # type: ignore[misc]
        loss.backward()
        losses.append(loss.item())
    assert sum(losses) == pytest.approx(total.item(), rel=1e-6)
    assert float((gradients() - wanted).abs().max() / wanted.abs().max()) < 1e-6


def test_one_pass_holds_the_graph_of_one_part(tmp_path: Path) -> None:
    model = opened(tmp_path)
    parts = [TASK.collate([row], pad_token_id=0) for row in data_of(tmp_path, TRIPLETS).train]
    graphs = []

    def embed(model: Any, part: Any) -> torch.Tensor:
        graphs.append(torch.is_grad_enabled())
        return TASK.logits(model, part)

    found = shared(model, parts, embed, 0.1, lambda _, forward: forward())
    assert graphs == [False] * 5
    assert all(not part["gradient"].requires_grad for part in found)


def write_quiet(folder: Path) -> Path:
    """An encoder without dropout, whose draws would be each part's own."""
    write_bert(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("method", ["lora", pytest.param("bitfit", marks=pytest.mark.slow)])
def test_whatever_the_micro_batch_the_adapter_is_the_same(tmp_path: Path, method: str) -> None:
    found = []
    for micro in (5, 12):
        training = f"max_steps: 2, batch_size: 12, micro_batch_size: {micro}, learning_rate: 0.01, optimizer: sgd"
        peftcli.train(written(tmp_path, method, write=write_quiet, training=training), output=tmp_path / f"run-{micro}")
        found.append(load_file(tmp_path / f"run-{micro}" / "adapter" / "adapter_model.safetensors"))
    one, other = found
    for name, tensor in one.items():
        assert float((other[name] - tensor).abs().max() / tensor.abs().max().clamp_min(1e-30)) < 1e-6, name


# -- vectors -----------------------------------------------------------------------------------------------------


def test_pooling_reads_real_tokens_alone() -> None:
    states, mask = torch.randn(3, 5, 4), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    for row, length in enumerate((5, 2, 1)):
        assert torch.allclose(pooled(states, mask, "mean")[row], states[row, :length].mean(0))
        assert torch.equal(pooled(states, mask, "cls")[row], states[row, 0])
        assert torch.equal(pooled(states, mask, "lasttoken")[row], states[row, length - 1])


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
@pytest.mark.parametrize("normalize", [True, False])
def test_a_shape_is_read_as_it_was_written(tmp_path: Path, pooling: str, normalize: bool) -> None:
    for name, content in shape_files(SentenceShape(pooling, normalize), 8, tmp_path).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert read_shape(tmp_path) == SentenceShape(pooling, normalize)


@pytest.mark.parametrize(
    ("kinds", "pooling", "said"),
    [
        (["Transformer", "Pooling"], {"pooling_mode": "max"}, "pools by max"),
        (["Transformer", "Pooling"], {"pooling_mode": ["mean", "cls"]}, "pools by mean, cls"),
        (["Transformer", "Pooling"], {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, "mean, max"),
        (["Transformer", "Pooling", "Dense"], {"pooling_mode": "mean"}, "Dense"),
        (["WordEmbeddings", "Pooling"], {"pooling_mode": "mean"}, "WordEmbeddings"),
    ],
)
def test_what_is_not_computed_is_refused(tmp_path: Path, kinds: list[str], pooling: dict[str, Any], said: str) -> None:
    modules = [
        {"idx": i, "path": f"{i}_{kind}", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    with pytest.raises(ModelError, match=said):
        TASK.for_base(tmp_path)
    # named in the recipe, nothing of the base's is asked
    named = task("embedding").with_options(EmbeddingConfig(pooling="cls", normalize=False))
    assert named.for_base(tmp_path).shape == SentenceShape("cls", normalize=False)  # type: ignore[attr-defined]


def vectors_of(anchors: list[int], matches: list[int], width: int = 5) -> Vectors:
    """Rows of an anchor and a match; equal numbers are equal texts."""
    drawn = unit(torch.randn(60, width, generator=torch.Generator().manual_seed(1))).numpy()
    keys = np.array([key for pair in zip(anchors, matches, strict=True) for key in pair])
    rows = np.repeat(np.arange(len(anchors)), 2)
    return Vectors(
        drawn[keys], rows, np.tile([0, 1], len(anchors)), keys, np.zeros(len(keys), dtype=bool), len(anchors)
    )


def test_ranks_are_those_of_a_plain_search() -> None:
    anchors, matches = [1, 2, 3, 1, 4, 5], [11, 12, 13, 14, 12, 15]
    found = vectors_of(anchors, matches)
    table = dict(zip(found.keys.tolist(), found.vectors, strict=True))
    for rows, ranks in found.ranks:
        name = anchors[rows[0]]
        relevant = {match for anchor, match in zip(anchors, matches, strict=True) if anchor == name}
        near = sorted(set(matches), key=lambda key: -float(table[name] @ table[key]))
        assert ranks.tolist() == [place for place, key in enumerate(near, 1) if key in relevant]
    assert sorted(len(rows) for rows, _ in found.ranks) == [1, 1, 1, 1, 2]


def test_the_gain_is_that_of_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    from peftcli.evaluation.metrics.ndcg_at_10 import METRIC

    anchors, matches = [i // 3 for i in range(24)], [20 + i for i in range(24)]
    found = vectors_of(anchors, matches, width=3)
    truth = np.array([[float(anchor == name) for anchor in anchors] for name in range(8)])
    said = found.vectors[::6] @ found.vectors[1::2].T
    assert METRIC.of_all(METRIC.vectors(found)) == pytest.approx(sklearn.ndcg_score(truth, said, k=10))  # type: ignore[misc]


def test_vectors_that_are_all_alike_find_nothing() -> None:
    from peftcli.evaluation.metrics.recall_at_1 import METRIC

    found = vectors_of(list(range(6)), list(range(10, 16)))
    alike = Vectors(np.tile(found.vectors[:1], (12, 1)), found.rows, found.places, found.keys, found.scored, 6)
    assert METRIC.of_all(METRIC.vectors(alike)) == 0.0  # type: ignore[misc]


# -- runs --------------------------------------------------------------------------------------------------------


WORDS = ("cat", "dog", "owl", "bee", "fox", "hen", "ant", "elk", "cow", "pig", "rat", "bat")


def written(
    folder: Path, method: str, *, write: Callable[[Path], Path] = write_bert, training: str = "", rest: str = ""
) -> Path:
    """Pairs that share a word; the held-out ones have other words around it."""
    write(folder / "base")
    for name, before, after in (
        ("train", "the {}", "{} here"),
        ("more", "my {} sat", "our {}"),
        ("held", "one {}", "{} too"),
    ):
        rows = [{"anchor": before.format(word), "positive": after.format(word)} for word in WORDS]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = folder / "pairs.yaml"
    training = training or "max_steps: 25, batch_size: 12, micro_batch_size: 5, learning_rate: 0.01"
    recipe.write_text(
        "task: embedding\nmodel: ./base\ndata: {train: [train.jsonl, more.jsonl], validation: held.jsonl}\n"
        f"method: {method}\ntraining: {{{training}}}\nevaluation: {{every: null, batch_size: 5}}\n{rest}"
    )
    return recipe


@pytest.mark.parametrize(
    ("write", "rest"), [(write_bert, ""), (write_llama, "embedding: {pooling: lasttoken, normalize: false}\n")]
)
def test_from_data_to_a_merged_model(tmp_path: Path, write: Callable[[Path], Path], rest: str) -> None:
    record = peftcli.train(written(tmp_path, "lora", write=write, rest=rest), output=tmp_path / "run")
    base, tuned = record.evaluation.base, record.evaluation.tuned
    assert tuned["eval_loss"] < base["eval_loss"]
    assert tuned["eval_recall_at_1"] > base["eval_recall_at_1"]
    assert evaluate_adapter(tmp_path / "run").evaluation.tuned == tuned

    config = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert config["task_type"] == "FEATURE_EXTRACTION"
    merge_adapter(tmp_path / "run", output=tmp_path / "merged")
    shape = SentenceShape("lasttoken", normalize=False) if rest else SentenceShape("mean", normalize=True)
    assert read_shape(tmp_path / "run" / "adapter") == read_shape(tmp_path / "merged") == shape
    model = transformers.AutoModel.from_pretrained(tmp_path / "merged").eval()
    assert type(model).__name__ in json.loads((tmp_path / "merged" / "config.json").read_text())["architectures"]
    texts_asked = [Request({"text": text}, "here") for text in ("a cat", "the owl too")]
    vectors = [each.tuned for each in embed_all(open_adapter(tmp_path / "run", device="cpu"), texts_asked)]
    merged = [each.tuned for each in embed_all(open_to_answer(tmp_path / "merged"), texts_asked)]
    assert np.allclose(vectors, merged, atol=1e-5)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6) == shape.normalize
    # the merged folder is a model of its own, and is worth the same
    again = evaluate_adapter(tmp_path / "merged", tmp_path / "run" / "recipe.yaml").evaluation.tuned
    assert again == pytest.approx(tuned, abs=1e-5)


def test_scored_pairs_are_learned_and_told(tmp_path: Path) -> None:
    recipe = written(tmp_path, "lora", training="max_steps: 20, batch_size: 6, learning_rate: 0.01")
    pairs = [(one, two) for one in WORDS[:4] for two in WORDS[:4]]
    for name, text in (("train", "a {}"), ("more", "the {}"), ("held", "{}")):
        rows = [
            {"sentence1": text.format(one), "sentence2": text.format(two) + " too", "score": float(one == two)}
            for one, two in pairs
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluation = peftcli.train(recipe, output=tmp_path / "run").evaluation
    assert set(evaluation.tuned) == {"eval_loss", "eval_spearman"}
    assert evaluation.tuned["eval_loss"] < 0.5 * evaluation.base["eval_loss"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    error = np.mean([(line["prediction"] - line["target"]) ** 2 for line in lines])
    assert error == pytest.approx(evaluation.tuned["eval_loss"], abs=1e-6)


def test_a_base_without_a_pooler_is_taken_as_it_is(tmp_path: Path) -> None:
    write_bert(tmp_path / "base")
    bare = transformers.BertModel.from_pretrained(tmp_path / "base", add_pooling_layer=False)
    bare.save_pretrained(tmp_path / "base")
    source = resolve_base(str(tmp_path / "base"), folder=tmp_path)
    model = load_model(source, auto_class="AutoModel")
    assert not any("pooler" in name for name, tensor in model.named_parameters())
    with pytest.raises(ModelError, match="pooler"):
        load_model(source, auto_class="AutoModel", pooler=True)


def test_a_base_that_writes_what_it_reads_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PeftcliError, match="reads one text and writes another"):
        peftcli.train(written(tmp_path, "lora", write=write_t5), output=tmp_path / "run")


@pytest.mark.parametrize(
    ("rest", "training", "said"),
    [
        ("", "batch_size: 1", "one row has none beside it"),
        ("embedding: {pooling: max}\n", "batch_size: 4", "pooling"),
        ("embedding: {temperature: 0}\n", "batch_size: 4", "temperature"),
        ("classification: {label_smoothing: 0.1}\n", "batch_size: 4", "has no meaning"),
    ],
)
def test_recipes_that_cannot_be_are_told(tmp_path: Path, rest: str, training: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe(written(tmp_path, "lora", training=training, rest=rest), ())


def test_a_loss_of_all_rows_does_not_hang_on_batches(tmp_path: Path) -> None:
    model, rows = opened(tmp_path), list(data_of(tmp_path, TRIPLETS).train)
    from peftcli.evaluation.evaluate import score

    store = data_of(tmp_path, TRIPLETS).train
    one, two = (score(model, TASK, store, batch_size=size, pad_token_id=0) for size in (2, 5))
    assert np.allclose(one.sums, two.sums, atol=1e-5)
    with torch.no_grad():
        wanted = TASK.loss(model, TASK.collate(rows, pad_token_id=0))
    assert two.sums.sum() == pytest.approx(float(wanted.total), abs=1e-4)
    assert settled(two, 0.1).sums.tolist() == two.sums.tolist()


def write_padded_llama(folder: Path) -> Path:
    """A decoder whose tokenizer can pad, as asking for several texts at once needs."""
    write_llama(folder)
    found = tokenizer(framed=False)
    found.pad_token = "[PAD]"
    found.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("write", "rest"),
    [(write_bert, ""), (write_padded_llama, "embedding: {pooling: lasttoken, normalize: false}\n")],
)
def test_sentence_transformers_gives_the_same_vectors(tmp_path: Path, write: Callable[[Path], Path], rest: str) -> None:
    sentences = pytest.importorskip("sentence_transformers")
    recipe = written(
        tmp_path, "lora", write=write, rest=rest, training="max_steps: 5, batch_size: 6, learning_rate: 0.01"
    )
    peftcli.train(recipe, output=tmp_path / "run")
    merge_adapter(tmp_path / "run", output=tmp_path / "merged")
    texts_asked = ["the cat", "one two three four five six", "?", "rat"]
    found = sentences.SentenceTransformer(str(tmp_path / "merged"), device="cpu").encode(texts_asked, batch_size=3)
    opened = open_adapter(tmp_path / "run", device="cpu")
    found_task: Any = task("embedding").for_base(opened.location.adapter)
    for text, vector in zip(texts_asked, found, strict=True):
        ids = opened.tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            own = found_task.logits(opened.model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        own = unit(own) if found_task.shape.normalize else own
        assert float((own[0] - torch.from_numpy(vector)).abs().max()) < 1e-5 * max(1.0, float(own.abs().max()))


@pytest.mark.parametrize("write", [write_bert, write_llama])
def test_the_reference_gives_the_same_states(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    peft = pytest.importorskip("peft")
    model = opened(tmp_path, write)
    adapters.attach(model, {"type": "lora", "r": 4})
    for parameter in adapter_of(model).trainable_parameters().values():
        torch.nn.init.normal_(parameter, std=0.1)
    adapters.save(model, tmp_path / "adapter")
    base = transformers.AutoModel.from_pretrained(tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert type(theirs).__name__ == "PeftModelForFeatureExtraction"
    ids = torch.tensor([[2, 9, 8, 7, 6, 3]])
    with torch.no_grad():
        wanted = theirs(input_ids=ids).last_hidden_state
        found = model(input_ids=ids).last_hidden_state
    assert float((found - wanted).abs().max()) < 1e-5
