"""`chat`, `generate` and `evaluate` on models that need no adapter: merged ones, and folders as they were published."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers
from safetensors.torch import load_file, save_file

import peftcli
from peftcli.cli.entry import run as peft
from peftcli.jobs import whole_models
from peftcli.models.builtin import builtin_base

RECIPE = """\
model: {base: BASE}
data: {train: DATA, validation: 6, max_length: 256}
method: lora
training: {max_steps: 2, batch_size: 4, learning_rate: 5e-2}
evaluation: {metrics: [loss, exact_match], rows: 4, samples: 0}
generation: {max_new_tokens: 10}
threads: 1
"""
PROMPT = "Finn Shaw here. My BluCon stove is broken."


def write_recipe(folder: Path, rows: list[dict[str, Any]], base: str = "builtin:tiny") -> Path:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "r.yaml"
    path.write_text(RECIPE.replace("BASE", base).replace("DATA", "rows.jsonl"))
    return path


def chats() -> list[dict[str, Any]]:
    said = [("user", "The parcel {} is late."), ("assistant", "Parcel {} is on its way.")]
    return [{"messages": [{"role": role, "content": text.format(n)} for role, text in said]} for n in range(30)]


def copy_of_the_base(folder: Path) -> Path:
    return Path(shutil.copytree(builtin_base("tiny"), folder))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in a folder, a run on it, and what was merged of the two."""
    folder = tmp_path_factory.mktemp("whole")
    base = copy_of_the_base(folder / "base")
    peftcli.train(write_recipe(folder, chats(), str(base)), output=folder / "run")
    assert peft(["merge", str(folder / "run"), "--output", str(folder / "merged"), "--quiet"]) == 0
    return folder


def asked(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> Any:
    capsys.readouterr()
    assert peft([str(each) for each in (*arguments, "--json")]) == code
    return json.loads(capsys.readouterr().out)


def test_a_merged_model_answers_and_scores_as_its_run(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, merged = (
        asked(capsys, "generate", work / name, "--prompt", PROMPT, "--base", "--set", "generation.max_new_tokens=10")
        for name in ("run", "merged")
    )
    assert run == merged
    assert run["answers"][0]["answer"] != run["answers"][0]["base_answer"]
    run, merged = asked(capsys, "evaluate", work / "run"), asked(capsys, "evaluate", work / "merged", work / "r.yaml")
    for side in ("base", "tuned"):
        assert merged[side]["eval_exact_match"] == run[side]["eval_exact_match"]
        assert merged[side]["eval_loss"] == pytest.approx(run[side]["eval_loss"], abs=1e-5)
    assert merged["differences"]["eval_loss"]["test"] == "paired bootstrap over rows"


def test_a_conversation_with_a_merged_model(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = {}
    for name in ("run", "merged"):
        monkeypatch.setattr("sys.stdin", io.StringIO("Hello, I am Cora Cole.\nMy stove is broken.\n"))
        turns[name] = asked(
            capsys, "chat", work / name, "--base", "--set", "generation.max_new_tokens=10"
        )["turns"]  # fmt: skip
    assert len(turns["run"]) == 2
    assert turns["run"] == turns["merged"]


def test_prompts_of_a_merged_model_look_as_in_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Raw text stays raw, though the tokenizer has a template."""
    peftcli.train(
        write_recipe(tmp_path, [{"text": f"row {n} is red"} for n in range(40)]),
        overrides={"evaluation.metrics": ["loss"], "data.max_length": 32},
        output=tmp_path / "run",
    )
    assert peft(["merge", str(tmp_path / "run"), "--output", str(tmp_path / "merged"), "--quiet"]) == 0
    short = ("--prompt", "row 3", "--set", "generation.max_new_tokens=10")
    run, merged = (asked(capsys, "generate", tmp_path / name, *short) for name in ("run", "merged"))
    assert run == merged
    (tmp_path / "merged" / "peftcli.json").unlink()
    assert asked(capsys, "generate", tmp_path / "merged", *short) != run


TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]


def test_named_templates_go_from_the_base_to_the_merged_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One for conversations, one for those with tools: trained, asked and merged by the one that fits the row."""
    base = copy_of_the_base(tmp_path / "base")
    plain = transformers.AutoTokenizer.from_pretrained(base).chat_template
    (base / "chat_template.jinja").unlink(missing_ok=True)
    document = json.loads((base / "tokenizer_config.json").read_text())
    with_tools = "{{ '<|system|>tools: ' ~ tools | tojson }}" + plain
    named = [{"name": "default", "template": plain}, {"name": "tool_use", "template": with_tools}]
    (base / "tokenizer_config.json").write_text(json.dumps(document | {"chat_template": named}))
    rows = [{**row, "tools": TOOLS} if number % 2 else row for number, row in enumerate(chats())]
    recipe = write_recipe(tmp_path, rows, str(base))
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    shown = asked(capsys, "data", recipe, "--rows", 30)["rows"]
    assert {"tools:" in "".join(span["text"] for span in row["spans"]) for row in shown} == {False, True}
    for row in shown:
        given = rows[int(row["origin"].rsplit(":", 1)[1]) - 1]
        assert row["input_ids"] == tokenizer.apply_chat_template(
            given["messages"], tools=given.get("tools"), return_dict=False
        )
    peftcli.train(recipe, output=tmp_path / "run")
    assert peft(["merge", str(tmp_path / "run"), "--output", str(tmp_path / "merged"), "--quiet"]) == 0
    merged = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert merged.chat_template == tokenizer.chat_template == {"default": plain, "tool_use": with_tools}
    asks = [{"messages": chats()[0]["messages"][:1], **more} for more in ({}, {"tools": TOOLS})]
    (tmp_path / "asks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asks))
    both = [
        asked(capsys, "generate", tmp_path / name, "--input", tmp_path / "asks.jsonl") for name in ("run", "merged")
    ]
    assert both[0] == both[1]
    assert len({row["answer"] for row in both[0]["answers"]}) == 2


def test_a_published_model_is_scored_alone(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = asked(capsys, "evaluate", work / "base", work / "r.yaml")
    assert (found["base"], found["differences"]) == ({}, {})
    assert found["tuned"] == asked(capsys, "evaluate", work / "run")["base"]
    assert peft(["evaluate", str(work / "base"), str(work / "r.yaml")]) == 0
    header = capsys.readouterr().out.splitlines()[1].split()
    assert header == ["metric", "model", "95", "%"]
    assert peft(["generate", str(work / "base"), "--prompt", PROMPT]) == 0
    alone = capsys.readouterr().out.strip()
    both = asked(
        capsys, "generate", work / "run", "--prompt", PROMPT, "--base", "--set", "generation.max_new_tokens=64"
    )
    assert alone == both["answers"][0]["base_answer"].strip()


def test_the_base_of_a_merged_model_is_the_right_one_or_told(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = copy_of_the_base(tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    save_file({name: tensor * 1.01 for name, tensor in weights.items()}, other / "model.safetensors", {"format": "pt"})
    for command in (["generate", "--prompt", "hi", "--base"], ["evaluate", work / "r.yaml"]):
        name, *rest = command
        wrong = asked(capsys, name, work / "merged", *rest, "--model", other, code=4)
        assert "trained on another base" in json.dumps(wrong)
    # the base has moved: another copy of it is as good, without one the model is scored alone and that is said
    moved = Path(shutil.copytree(work / "merged", tmp_path / "merged"))
    own = json.loads((moved / "peftcli.json").read_text())
    own["base"]["name"] = "/nowhere/base"
    (moved / "peftcli.json").write_text(json.dumps(own))
    gone = asked(capsys, "generate", moved, "--prompt", "hi", "--base", code=4)
    assert "/nowhere/base is gone" in json.dumps(gone)
    assert asked(capsys, "generate", moved, "--prompt", "hi", "--base", "--model", work / "base")["answers"]
    capsys.readouterr()
    assert peft(["evaluate", str(moved), str(work / "r.yaml"), "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["base"] == {}
    assert "scored without its base: the model's base /nowhere/base is gone" in shown.err


def test_two_models_that_do_not_fit_beside_each_other(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told before the second is loaded; scores of the model alone are still to be had."""
    size = sum(tensor.numel() * 4 for tensor in load_file(work / "merged" / "model.safetensors").values())
    for there, fits in ((2 * size + 1_000_000, True), (2 * size - 1_000_000, False)):
        monkeypatch.setattr(whole_models, "total_memory_bytes", lambda _device, there=there: there)
        code = peft(["generate", str(work / "merged"), "--prompt", "hi", "--base"])
        shown = capsys.readouterr()
        assert code == (0 if fits else 9)
        assert ("beside each other" in shown.err) is not fits
    assert peft(["evaluate", str(work / "merged"), str(work / "r.yaml"), "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["base"] == {}
    assert "scored without its base: the model and its base need" in shown.err
    told = asked(capsys, "evaluate", work / "merged", work / "r.yaml", "--model", work / "base", code=9)
    assert "beside each other" in json.dumps(told)


def test_a_base_of_another_vocabulary_is_none(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = copy_of_the_base(tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    one, two = list(vocabulary)[300:302]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    found = asked(capsys, "generate", work / "base", "--prompt", "hi", "--base", "--model", other, code=4)
    assert "a vocabulary that differs" in json.dumps(found)


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["generate", "base", "--prompt", "hi", "--base"], 4, "does not say which base it belongs to"),
        (["generate", "merged", "--prompt", "hi", "--model", "builtin:tiny"], 2, "--model builtin:tiny has no effect"),
        (["chat", "base", "--base"], 4, "does not say which base it belongs to"),
        (["evaluate", "merged"], 2, "a bare model has no recipe"),
        (["generate", "merged", "--prompt", "hi", "--set", "method.r=2"], 2, "only `seed` and generation"),
        (["merge", "merged", "--output", "again"], 4, "this is a whole model"),
        (["diff", "merged", "run"], 4, "this is a whole model"),
        (["chat", "encoder"], 4, "BertForSequenceClassification"),
    ],
)
def test_what_a_whole_model_is_not_for(
    arguments: list[str], code: int, told: str, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not (work / "encoder").exists():
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        copy_of_the_base(work / "encoder")
        transformers.BertForSequenceClassification(
            transformers.BertConfig(vocab_size=1600, **sizes)
        ).save_pretrained(work / "encoder")  # fmt: skip
    given = [str(work / part) if (work / part).exists() else part for part in arguments]
    assert peft(given) == code
    shown = capsys.readouterr()
    assert told in shown.err
    assert shown.out == ""
    assert len(shown.err.strip().splitlines()) <= 5
