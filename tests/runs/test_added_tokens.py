"""`model.add_tokens`: one id, one row that is trained, the same answers wherever the adapter goes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import peftcli
from peftcli import adapters
from peftcli.cli.entry import run as peft
from peftcli.errors import AdapterError, ModelError, RecipeError
from peftcli.jobs.opening import open_adapter
from peftcli.models.builtin import builtin_base
from peftcli.planning.plan import prepare_run
from peftcli.recipe import load_recipe

TOKENS = ["<tool>", "<ticket>"]
TENSORS = "adapter_model.safetensors"
SPARE = 5
"""Rows of a table beyond its tokenizer, as published models have them."""


def base(folder: Path, kind: str) -> Path:
    """`tied`: builtin:tiny itself; `untied`: with a head of its own; `spare`: with rows to spare."""
    source, target = builtin_base("tiny"), folder / "base"
    shutil.copytree(source, target)
    if kind == "tied":
        return target
    model = AutoModelForCausalLM.from_pretrained(source)
    if kind == "untied":
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().flip(1).clone())
    else:
        torch.manual_seed(0)
        model.resize_token_embeddings(len(model.lm_head.weight) + SPARE, mean_resizing=False)
    model.save_pretrained(target)
    return target


def recipe(folder: Path, name: str = "first", **sections: Any) -> Path:
    rows = [{"prompt": f"order {n} <ticket>", "completion": f"<tool> number {n * 7 % 10} <tool>"} for n in range(24)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    document: dict[str, Any] = {
        "model": {"base": "./base", "add_tokens": TOKENS},
        "data": {"train": "./rows.jsonl", "validation": 4, "max_length": 64},
        "method": {"type": "lora", "r": 4},
        "training": {"max_steps": 3, "batch_size": 4, "learning_rate": 1e-2},
        "evaluation": {"samples": 0},
        "checkpoint": {"best": None},
        "threads": 1,
    }
    document |= {key: value for key, value in sections.items() if value is not None}
    for key in [key for key, value in sections.items() if value is None]:
        del document[key]
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def evaluations(run: Path) -> dict[int, float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return {line["step"]: line["eval_loss"] for line in lines if line["event"] == "eval"}


def logits(model: Any, tokenizer: Any) -> torch.Tensor:
    """In float64, where the rounding of the passes themselves is out of the way."""
    with torch.no_grad():
        model.double()
        found: torch.Tensor = model(**tokenizer("order 3 <ticket> <tool> <tool>", return_tensors="pt")).logits
    return found


@pytest.fixture(scope="module", params=["tied", "untied", "spare"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base` and the run `first`."""
    folder = tmp_path_factory.mktemp(request.param)
    base(folder, request.param)
    peftcli.train(recipe(folder), output=folder / "first")
    return folder


def test_new_tokens_get_the_next_ids_and_no_other_changes(trained: Path) -> None:
    before = AutoTokenizer.from_pretrained(trained / "base")
    after = AutoTokenizer.from_pretrained(trained / "first" / "adapter")
    assert after.convert_tokens_to_ids(TOKENS) == [len(before), len(before) + 1]
    assert {token: number for token, number in after.get_vocab().items() if token not in TOKENS} == before.get_vocab()
    assert after("order<tool>s").input_ids.count(len(before)) == 1


def test_their_rows_alone_are_trained_from_the_mean_of_their_pieces(trained: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(trained / "base")
    ids = [len(tokenizer), len(tokenizer) + 1]
    prepared = prepare_run(load_recipe(trained / "first.yaml"))
    tensors = load_file(trained / "first" / "adapter" / TENSORS)
    own = load_file(trained / "base" / "model.safetensors")
    tables = {"embed_tokens": own["model.embed_tokens.weight"]}
    if "lm_head.weight" in own:
        tables["lm_head"] = own["lm_head.weight"]
    rows = {key: value for key, value in tensors.items() if "trainable_tokens_delta" in key}
    assert len(rows) == len(tables)
    for name, table in tables.items():
        (found,) = (value for key, value in rows.items() if name in key)
        mean = torch.stack([table[tokenizer(t, add_special_tokens=False).input_ids].mean(0) for t in TOKENS])
        assert found.shape == mean.shape
        # three steps of Adam at 1e-2 move no value by more than about 3e-2 from its start
        assert 0 < float((found - mean).abs().max()) < 0.04
    wanted = getattr(prepared.method, "trainable_token_indices")  # noqa: B009
    assert all(each == ids for each in (wanted.values() if isinstance(wanted, dict) else [wanted]))
    opened, rows_before = open_adapter(trained / "first"), len(tables["embed_tokens"])
    assert opened.model.config.vocab_size == max(rows_before, len(tokenizer) + 2)


def test_opened_merged_and_exported_it_answers_the_same(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = open_adapter(trained / "first")
    expected = logits(opened.model, opened.tokenizer)
    assert peft(["merge", str(trained / "first"), "--output", str(tmp_path / "merged"), "--quiet"]) == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert merged.config.vocab_size == expected.shape[-1]
    torch.testing.assert_close(logits(merged, tokenizer), expected, rtol=0, atol=1e-5)
    assert tokenizer.get_vocab() == opened.tokenizer.get_vocab()
    capsys.readouterr()
    assert peft(["export", str(trained / "first"), "--to", "peft", "--output", str(tmp_path / "peft"), "--quiet"]) == 0
    # what is not the base's own is listed
    assert "tokens that the base's lacks" in (said := capsys.readouterr().out)
    assert ", ".join(f"`{token}`" for token in TOKENS) in said
    again = open_adapter(tmp_path / "peft", base=str(trained / "base"))
    assert torch.equal(logits(again.model, again.tokenizer), expected)
    # the base alone still takes the tokens, and is not the tuned model
    with opened.as_base() as plain:
        assert not torch.equal(logits(plain, opened.tokenizer), expected)


def test_the_reference_answers_the_same(trained: Path) -> None:
    reference = pytest.importorskip("peft")
    opened = open_adapter(trained / "first")
    tokenizer = AutoTokenizer.from_pretrained(trained / "first" / "adapter")
    model = AutoModelForCausalLM.from_pretrained(trained / "base")
    if len(tokenizer) > model.config.vocab_size:
        model.resize_token_embeddings(len(tokenizer))
    theirs = reference.PeftModel.from_pretrained(model, trained / "first" / "adapter").eval()
    torch.testing.assert_close(logits(theirs, tokenizer), logits(opened.model, opened.tokenizer), rtol=0, atol=1e-5)


def test_from_python_the_base_is_resized_first(trained: Path) -> None:
    folder = trained / "first" / "adapter"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(trained / "base"), AutoTokenizer.from_pretrained(folder)
    if len(tokenizer) > model.config.vocab_size:
        with pytest.raises(AdapterError, match="beyond the vocabulary"):
            adapters.load(model, folder)
        model.resize_token_embeddings(len(tokenizer))
    adapters.load(model, folder)
    opened = open_adapter(trained / "first")
    torch.testing.assert_close(logits(model, tokenizer), logits(opened.model, tokenizer), rtol=0, atol=1e-5)


def test_training_goes_on_with_them(trained: Path, tmp_path: Path) -> None:
    model = {"base": str(trained / "base"), "init_adapter": str(trained / "first")}
    run = tmp_path / "second"
    record = peftcli.train(recipe(tmp_path, "second", model=model, method=None), output=run)
    first, second = evaluations(trained / "first"), evaluations(run)
    assert second[0] == first[3]
    assert record.evaluation.base["eval_loss"] == first[0]
    before, after = (AutoTokenizer.from_pretrained(each / "adapter").get_vocab() for each in (trained / "first", run))
    assert before == after
    opened = open_adapter(run)
    assert logits(opened.model, opened.tokenizer).shape[-1] == opened.model.config.vocab_size
    with pytest.raises(RecipeError, match="none of the tokens of the adapter"):
        prepare_run(load_recipe(recipe(tmp_path, "third", model={**model, "add_tokens": ["<new>"]}, method=None)))


# -- what may be asked for ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_whole_tables_are_trained_where_they_are_named(kind: str, tmp_path: Path) -> None:
    base(tmp_path, kind)
    method = {"type": "lora", "r": 4, "modules_to_save": ["embed_tokens", "lm_head"]}
    if kind == "tied":
        with pytest.raises(RecipeError, match="names one of two tied tables"):
            prepare_run(load_recipe(recipe(tmp_path, method={**method, "modules_to_save": ["embed_tokens"]})))
        method |= {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
    peftcli.train(recipe(tmp_path, method=method), output=tmp_path / "first")
    tensors = load_file(tmp_path / "first" / "adapter" / TENSORS)
    rows = len(AutoTokenizer.from_pretrained(tmp_path / "first" / "adapter"))
    assert all(len(value) == rows for key, value in tensors.items() if "embed_tokens" in key or "lm_head" in key)
    assert not any("trainable_tokens" in key for key in tensors)
    opened = open_adapter(tmp_path / "first")
    expected = logits(opened.model, opened.tokenizer)
    assert peft(["merge", str(tmp_path / "first"), "--output", str(tmp_path / "merged"), "--quiet"]) == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged, opened.tokenizer), expected, rtol=0, atol=1e-5)


def test_a_method_that_cannot_train_them_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base(tmp_path, "tied")
    assert peft(["validate", str(recipe(tmp_path, method={"type": "prompt_tuning"}))]) == 2
    assert "prompt_tuning trains no rows of new tokens" in capsys.readouterr().err
    with pytest.raises(RecipeError, match=r"does not train the rows of new tokens in model\.embed_tokens"):
        prepare_run(load_recipe(recipe(tmp_path, method={"type": "bitfit"})))


def test_a_token_that_is_there_is_told(tmp_path: Path) -> None:
    base(tmp_path, "tied")
    known = AutoTokenizer.from_pretrained(tmp_path / "base").convert_ids_to_tokens(40)
    with pytest.raises(ModelError, match="is token 40 of the base already"):
        prepare_run(load_recipe(recipe(tmp_path, model={"base": "./base", "add_tokens": [known]})))


@pytest.mark.parametrize(
    ("tokens", "told"), [(["<a>", "<a>"], "twice"), ([" <a>"], "space"), ([""], "add_tokens"), ("<a>", "add_tokens")]
)
def test_odd_lists_are_told(tmp_path: Path, tokens: Any, told: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe(tmp_path, model={"base": "./base", "add_tokens": tokens}))
    assert told in str(caught.value)


def test_tokens_without_rows_are_refused(trained: Path, tmp_path: Path) -> None:
    """A tokenizer with more tokens than base and adapter have rows for would answer with rows of chance."""
    shutil.copytree(trained / "first" / "adapter", tmp_path / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "adapter")
    tokenizer.add_tokens([f"<more {number}>" for number in range(SPARE + 1)])
    tokenizer.save_pretrained(tmp_path / "adapter")
    with pytest.raises(AdapterError, match="the tokenizer beside the adapter has"):
        open_adapter(tmp_path / "adapter", base=str(trained / "base"))
