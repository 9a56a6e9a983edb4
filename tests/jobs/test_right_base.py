"""Every command opens an adapter on the base that it was made for: name, revision, weights, model class."""

# ruff: noqa: E501 - a table reads best with an entry a line

from __future__ import annotations

import functools
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from peftcli import adapters, files
from peftcli.adapters.documents import read_config, read_own
from peftcli.adapters.surgery import adapter_of, disabled
from peftcli.cli.entry import run as peft
from peftcli.errors import AdapterError, HubError, ModelError, PeftcliError
from peftcli.jobs.convert import convert_adapter
from peftcli.jobs.generate import answer_all, chat_note, text_request
from peftcli.jobs.inspection import inspect_path
from peftcli.jobs.opening import auto_class_of, locate, open_adapter, writing_of
from peftcli.models.builtin import builtin_base
from peftcli.models.heads import LabelHead
from peftcli.models.load import load_model
from peftcli.models.source import resolve_base
from peftcli.models.tokenizer import load_tokenizer

KEY = "model.layers.0.self_attn.q_proj.weight"
COMMIT, OTHER = "1" * 40, "2" * 40
LORA = {"type": "lora", "r": 2, "target_modules": ["q_proj", "v_proj"]}
RECIPE = """\
model: {base: BASE, revision: "REVISION"}
data: {train: {path: ./rows.jsonl}, validation: 2, max_length: 64, truncation: left}
method: {type: lora, r: 2, target_modules: [q_proj, v_proj]}
training: {max_steps: 2, batch_size: 2, micro_batch_size: 2, learning_rate: 2e-3}
evaluation: {samples: 0}
threads: 1
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def plain_base(folder: Path, factor: float = 1.0) -> Path:
    """A very small base in a folder of its own, its weights times a factor."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = transformers.LlamaConfig(vocab_size=vocabulary(), pad_token_id=0, num_key_value_heads=2, **sizes)
    with_tokenizer(folder, transformers.LlamaForCausalLM(config))
    for name in ("generation_config.json", "chat_template.jinja"):
        if (builtin_base("tiny") / name).is_file():
            shutil.copy(builtin_base("tiny") / name, folder / name)
    path = folder / "model.safetensors"
    save_file({key: value * factor for key, value in load_file(path).items()}, path, {"format": "pt"})
    return folder


@functools.cache
def vocabulary() -> int:
    return len(load_tokenizer(resolve_base("builtin:tiny", folder=Path())))


def with_tokenizer(folder: Path, model: Any, *, chats: bool = True) -> Path:
    """A model folder with the built-in base's tokenizer."""
    model.save_pretrained(folder)
    shutil.copy(builtin_base("tiny") / "tokenizer.json", folder)
    settings = json.loads((builtin_base("tiny") / "tokenizer_config.json").read_text())
    if not chats:
        settings.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def in_cache(cache: Path, folder: Path, name: str, commit: str = COMMIT) -> Path:
    """A folder as the Hub's cache lays it out: a snapshot of links into blobs."""
    repository = cache / f"models--{name.replace('/', '--')}"
    place = repository / "snapshots" / commit
    for part in (repository / "blobs", repository / "refs", place):
        part.mkdir(parents=True, exist_ok=True)
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        blob = repository / "blobs" / files.sha256_file(path)
        shutil.copy(path, blob)
        (place / path.name).symlink_to(os.path.relpath(blob, place))
    (repository / "refs" / "main").write_text(commit)
    return place


def perturbed(model: nn.Module, section: dict[str, Any]) -> nn.Module:
    """The model with an adapter that has an effect."""
    adapters.attach(model, section)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter_of(model).trainable_parameters().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def stranger(adapter: Path, **changes: Any) -> Path:
    """The adapter as another tool wrote it: nothing of ours beside it, and fields of its own."""
    (adapter / "peftcli.json").unlink()
    document = {**json.loads((adapter / "adapter_config.json").read_text()), **changes}
    (adapter / "adapter_config.json").write_text(json.dumps(document))
    return adapter


def made(work: Path, base: Path, *, name: str | None = None, section: dict[str, Any] | None = None, **how: Any) -> Path:
    """An adapter of ours for a base, in `work/adapter`."""
    model = load_model(resolve_base(str(base), folder=work), **how)
    adapters.save(perturbed(model, section or LORA), work / "adapter", base_name=name or str(base))
    return work / "adapter"


def base_weight(model: nn.Module) -> torch.Tensor:
    with disabled(model):
        adapters.detach(model)
    return model.get_parameter(KEY)


# -- revisions ---------------------------------------------------------------------------------------------------


@pytest.fixture
def two_revisions(work: Path) -> Path:
    """`someone/base` in the cache: `main` and OTHER, whose weights differ; returns a folder as OTHER is."""
    folder = plain_base(work / "other")
    in_cache(work / "hub", folder, "someone/base", OTHER)
    in_cache(work / "hub", plain_base(work / "newer", 1.5), "someone/base", COMMIT)
    return folder


def test_the_revision_of_an_adapter_of_the_reference_is_the_one_that_is_opened(work: Path, two_revisions: Path) -> None:
    adapter = stranger(made(work, two_revisions), base_model_name_or_path="someone/base", revision=OTHER)
    expected = load_file(two_revisions / "model.safetensors")[KEY]
    assert torch.equal(base_weight(open_adapter(adapter).model), expected)
    assert torch.equal(base_weight(open_adapter(adapter, base="someone/base").model), expected)
    stranger_without = json.loads((adapter / "adapter_config.json").read_text()) | {"revision": None}
    (adapter / "adapter_config.json").write_text(json.dumps(stranger_without))
    assert torch.equal(base_weight(open_adapter(adapter).model), 1.5 * expected)


def test_revision_survives_merge_and_convert(work: Path, two_revisions: Path) -> None:
    adapter = stranger(made(work, two_revisions), base_model_name_or_path="someone/base", revision=OTHER)
    assert peft(["merge", str(adapter), "--output", "merged", "--quiet"]) == 0
    tuned = open_adapter(adapter).model
    adapters.merge(tuned)
    found = load_file(work / "merged" / "model.safetensors")[KEY]
    assert torch.allclose(found, tuned.get_parameter(KEY), atol=1e-6)
    convert_adapter(adapter, to="lora", output=work / "converted", r=4)
    document = read_config(work / "converted")
    assert (document["base_model_name_or_path"], document["revision"]) == ("someone/base", OTHER)
    assert read_own(work / "converted")["base"]["commit"] == OTHER
    assert torch.equal(
        base_weight(open_adapter(work / "converted").model), load_file(work / "other" / "model.safetensors")[KEY]
    )


def test_a_run_at_a_revision_is_used_by_every_command_even_when_the_branch_moves_on(
    work: Path, two_revisions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"prompt": f"Say {name}.", "completion": f"{name}!"}
        for name in ["one", "two", "three", "four", "five", "six", "seven", "eight"]
    ]
    (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (work / "r.yaml").write_text(RECIPE.replace("BASE", "someone/base").replace("REVISION", OTHER))
    assert peft(["train", "r.yaml", "--output", "run", "--quiet"]) == 0
    assert read_config(work / "run" / "adapter")["revision"] == OTHER
    quick = ["--set", "generation.max_new_tokens=1"]
    for command in (
        ["generate", "run", "--prompt", "Hi", *quick],
        ["evaluate", "run"],
        ["merge", "run", "--output", "merged"],
        ["convert", "run", "--to", "lora", "--output", "converted"],
        ["inspect", "run"],
        ["diff", "run", "converted"],
        ["generate", "converted", "--prompt", "Hi", "--model", "someone/base", *quick],
    ):
        capsys.readouterr()
        assert peft([*command, "--quiet"]) == 0, command
        printed = capsys.readouterr()
        assert "no update norms" not in printed.out, "inspect opened the base"
        assert "compared as stored" not in printed.out, "diff opened the base"


def test_a_branch_is_noted_as_the_commit_that_it_was(work: Path) -> None:
    in_cache(work / "hub", plain_base(work / "old"), "someone/base", OTHER)
    model = perturbed(load_model(resolve_base("someone/base", folder=work)), LORA)
    adapters.save(model, work / "adapter")
    document = read_config(work / "adapter")
    assert document["base_model_name_or_path"] == "someone/base"
    assert read_own(work / "adapter")["base"]["commit"] == OTHER
    in_cache(work / "hub", plain_base(work / "new", 1.5), "someone/base", COMMIT)
    assert torch.equal(
        base_weight(open_adapter(work / "adapter").model), load_file(work / "old" / "model.safetensors")[KEY]
    )


@pytest.mark.parametrize("command", ["generate", "evaluate", "merge", "convert"])
def test_another_base_is_refused_by_its_fingerprint_everywhere(
    work: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = made(work, plain_base(work / "base"))
    plain_base(work / "wrong", 1.5)
    words = {
        "generate": ["generate", "adapter", "--prompt", "Hi"],
        "evaluate": ["evaluate", "adapter"],
        "merge": ["merge", "adapter", "--output", "out"],
        "convert": ["convert", "adapter", "--to", "lora", "--output", "out"],
    }[command]
    assert adapter.is_dir()
    assert peft([*words, "--model", "wrong", "--quiet"]) == 4
    printed = capsys.readouterr().err
    assert "trained on another base" in printed
    assert "--model" in printed
    assert not (work / "out").exists()


# -- where the base lies -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "recorded"), [("working folder", "./base"), ("beside the adapter", "base"), ("in the adapter", "./base/")]
)
def test_a_relative_base_is_looked_for_where_it_may_lie(
    work: Path, monkeypatch: pytest.MonkeyPatch, place: str, recorded: str
) -> None:
    base = plain_base(work / "project" / "base")
    adapter = stranger(made(work, base, name="x"), base_model_name_or_path=recorded)
    shutil.move(adapter, work / "elsewhere" / "adapter") if (work / "elsewhere").mkdir() is None else None
    adapter = work / "elsewhere" / "adapter"
    target = {"working folder": work / "here", "beside the adapter": adapter.parent, "in the adapter": adapter}[place]
    target.mkdir(exist_ok=True)
    shutil.move(base, target / "base")
    (work / "here").mkdir(exist_ok=True)
    monkeypatch.chdir(work / "here")
    assert open_adapter(adapter).source.folder == target / "base"


def test_two_bases_of_one_name_are_not_chosen_between(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = stranger(made(work, plain_base(work / "base")), base_model_name_or_path="./base")
    plain_base(work / "here" / "base", 1.5)
    monkeypatch.chdir(work / "here")
    with pytest.raises(AdapterError, match="there twice") as caught:
        open_adapter(adapter)
    assert str(work / "here" / "base") in str(caught.value)
    assert str(work / "base") in str(caught.value)
    assert "--model" in str(caught.value)
    assert open_adapter(adapter, base="../base").source.folder == work / "base"


@pytest.mark.parametrize("recorded", ["./base", "../base", "~/no/such/base", "ABSOLUTE"])
def test_a_base_that_is_gone_is_told_with_every_place_and_the_way_out(
    work: Path, monkeypatch: pytest.MonkeyPatch, recorded: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = recorded.replace("ABSOLUTE", str(work / "gone"))
    adapter = stranger(made(work, plain_base(work / "kept")), base_model_name_or_path=recorded)
    (work / "here").mkdir()
    monkeypatch.chdir(work / "here")
    assert peft(["merge", str(adapter), "--output", "out", "--quiet"]) == 4
    printed = capsys.readouterr().err
    assert "--model BASE" in printed
    if recorded == "./base":
        assert str(work / "here" / "base") in printed
        assert str(work / "base") in printed
    assert "Traceback" not in printed
    assert peft(["merge", str(adapter), "--output", "out", "--model", str(work / "kept"), "--quiet"]) == 0


def test_a_base_of_the_hub_that_is_not_here_is_told_with_the_way_out(work: Path) -> None:
    adapter = stranger(made(work, plain_base(work / "base")), base_model_name_or_path="someone/gone")
    with pytest.raises(HubError, match="--model BASE") as caught:
        open_adapter(adapter)
    assert "someone/gone" in str(caught.value)
    with pytest.raises(HubError) as told:
        open_adapter(adapter, base="someone/else")
    assert "--model" not in str(told.value), "it was named there"


def test_a_name_of_the_hub_is_no_path_because_its_first_part_lies_here(work: Path) -> None:
    in_cache(work / "hub", plain_base(work / "base"), "someone/base")
    adapter = stranger(made(work, work / "base"), base_model_name_or_path="someone/base")
    (work / "someone").mkdir()
    assert open_adapter(adapter).source.location == "someone/base"


# -- the model class ---------------------------------------------------------------------------------------------


def t5(folder: Path) -> Path:
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
    config = transformers.T5Config(vocab_size=vocabulary(), decoder_start_token_id=0, pad_token_id=0, **sizes)
    return with_tokenizer(folder, transformers.T5ForConditionalGeneration(config), chats=False)


def bert(folder: Path, model: str = "BertModel") -> Path:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return with_tokenizer(
        folder, getattr(transformers, model)(transformers.BertConfig(vocab_size=vocabulary(), **sizes))
    )


def masked_bert(folder: Path) -> Path:
    return bert(folder, "BertForMaskedLM")


def tiny(folder: Path) -> Path:
    return plain_base(folder)


T5_LORA = {"type": "lora", "r": 2, "target_modules": ["q", "v"]}
BERT_LORA = {"type": "lora", "r": 2, "target_modules": ["query", "value"]}
SEQ_CLS, TOKEN_CLS = "AutoModelForSequenceClassification", "AutoModelForTokenClassification"
CLASSES: dict[str, tuple[Callable[[Path], Path], dict[str, Any], str, dict[str, Any], dict[str, Any]]] = {
    "causal": (tiny, LORA, "AutoModelForCausalLM", {}, {"task_type": "CAUSAL_LM"}),
    "causal by mapping": (tiny, LORA, "AutoModelForCausalLM", {}, {"task_type": None, "auto_mapping": {"base_model_class": "LlamaForCausalLM"}}),
    "causal by nothing": (tiny, LORA, "AutoModelForCausalLM", {}, {"task_type": None}),
    "seq2seq": (t5, T5_LORA, "AutoModelForSeq2SeqLM", {}, {"task_type": "SEQ_2_SEQ_LM"}),
    "seq2seq by mapping": (t5, T5_LORA, "AutoModelForSeq2SeqLM", {}, {"task_type": None, "auto_mapping": {"base_model_class": "T5ForConditionalGeneration", "parent_library": "transformers.models.t5.modeling_t5"}}),
    "seq2seq by nothing": (t5, T5_LORA, "AutoModelForSeq2SeqLM", {}, {"task_type": None}),
    "classifier": (tiny, {**LORA, "modules_to_save": ["score"]}, SEQ_CLS, {"head": LabelHead.unnamed(3)}, {"task_type": "SEQ_CLS"}),
    "classifier by mapping": (tiny, {**LORA, "modules_to_save": ["score"]}, SEQ_CLS, {"head": LabelHead.unnamed(5)}, {"task_type": None, "auto_mapping": {"base_model_class": "LlamaForSequenceClassification"}}),
    "encoder classifier": (bert, {**BERT_LORA, "modules_to_save": ["classifier"]}, SEQ_CLS, {"head": LabelHead.unnamed(4)}, {"task_type": "SEQ_CLS"}),
    "token classifier": (bert, {**BERT_LORA, "modules_to_save": ["classifier"]}, TOKEN_CLS, {"head": LabelHead.unnamed(7)}, {"task_type": "TOKEN_CLS"}),
    "masked": (masked_bert, BERT_LORA, "AutoModelForMaskedLM", {}, {"task_type": None, "auto_mapping": {"base_model_class": "BertForMaskedLM"}}),
    "masked by nothing": (masked_bert, BERT_LORA, "AutoModelForMaskedLM", {}, {"task_type": None}),
    "features": (bert, BERT_LORA, "AutoModel", {}, {"task_type": "FEATURE_EXTRACTION"}),
}  # fmt: skip


@pytest.mark.parametrize("case", CLASSES)
def test_the_adapter_opens_on_the_class_that_it_was_made_for(work: Path, case: str) -> None:
    build, section, auto_class, extra, fields = CLASSES[case]
    base = build(work / "base")
    model = perturbed(load_model(resolve_base(str(base), folder=work), auto_class=auto_class, **extra), section)
    adapters.save(model, work / "adapter", base_name=str(base))
    adapter = (
        stranger(work / "adapter", auto_mapping=None, **fields)
        if "auto_mapping" not in fields
        else stranger(work / "adapter", **fields)
    )
    opened = open_adapter(adapter)
    assert type(opened.model) is type(model)
    assert auto_class_of(locate(adapter)) == opened.auto_class == auto_class
    ids = {
        "input_ids": torch.arange(5, 21)[None],
        **({"decoder_input_ids": torch.arange(3, 9)[None]} if "seq2seq" in case else {}),
    }
    with torch.inference_mode():
        assert torch.allclose(opened.model(**ids)[0], model(**ids)[0], atol=1e-5)
    found = inspect_path(adapter)
    assert found.updates, found.notes
    assert not found.notes
    if auto_class != "AutoModel":
        report = convert_adapter(adapter, to="lora", output=work / "converted", r=4)
        assert report.max_difference < 1e-3 * max(1.0, report.adapter_effect)
        assert type(open_adapter(work / "converted").model) is type(model)


def test_our_own_file_knows_the_class_where_the_configuration_may_not_say_it(work: Path) -> None:
    """A classifier without a head of its own: the reference would insist on finding one."""
    model = load_model(
        resolve_base(str(tiny(work / "causal")), folder=work), auto_class=SEQ_CLS, head=LabelHead.unnamed(3)
    )
    base = with_tokenizer(work / "base", model)
    model = perturbed(load_model(resolve_base(str(base), folder=work), auto_class=SEQ_CLS), LORA)
    model.config.architectures = None
    adapters.save(model, work / "adapter", base_name=str(base))
    assert read_config(work / "adapter")["task_type"] is None
    assert type(open_adapter(work / "adapter").model).__name__ == "LlamaForSequenceClassification"


def test_a_head_that_nobody_holds_is_no_head(work: Path) -> None:
    model = perturbed(load_model(resolve_base(str(tiny(work / "base")), folder=work), auto_class=SEQ_CLS), LORA)
    adapters.save(model, work / "adapter", base_name=str(work / "base"))
    with pytest.raises(AdapterError, match=r"neither the base nor the adapter holds the head `score.weight`"):
        open_adapter(work / "adapter")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"task_type": "SORT"}, "`task_type` is 'SORT'"),
        ({"task_type": 3}, "`task_type` is '3'"),
        ({"task_type": None, "auto_mapping": {"base_model_class": "OwnNet"}}, "made for a OwnNet"),
    ],
)
def test_a_class_that_nobody_has_is_told(work: Path, changes: dict[str, Any], says: str) -> None:
    adapter = stranger(made(work, tiny(work / "base")), **changes)
    with pytest.raises(AdapterError, match=says):
        open_adapter(adapter)


def test_an_encoder_decoder_answers_with_its_decoder_alone(work: Path) -> None:
    base = t5(work / "base")
    model = perturbed(load_model(resolve_base(str(base), folder=work), auto_class="AutoModelForSeq2SeqLM"), T5_LORA)
    adapters.save(model, work / "adapter", base_name=str(base))
    opened = open_adapter(work / "adapter")
    config = writing_of(opened.location, ("generation.max_new_tokens=6",)).config
    prompts = ["The quick brown fox", "Hi", "One two three four five six seven"]
    answers = answer_all(opened, [text_request(prompt) for prompt in prompts], config)
    for prompt, answer in zip(prompts, answers, strict=True):
        row = opened.tokenizer(prompt, return_tensors="pt")
        ids = opened.model.generate(
            input_ids=row["input_ids"], attention_mask=row["attention_mask"], max_new_tokens=6, do_sample=False
        )
        assert answer.text == opened.tokenizer.decode(ids[0], skip_special_tokens=True), "as the model answers alone"


def test_a_classifier_writes_no_text(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(
        work,
        tiny(work / "base"),
        section={**LORA, "modules_to_save": ["score"]},
        auto_class=SEQ_CLS,
        head=LabelHead.unnamed(3),
    )
    assert peft(["chat", "adapter"]) == 4
    assert "LlamaForSequenceClassification, which writes no text" in capsys.readouterr().err
    assert peft(["generate", "adapter", "--prompt", "Hi"]) == 0
    assert capsys.readouterr().out.startswith("LABEL_")


def test_a_recipe_of_another_task_scores_nothing(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(
        work,
        tiny(work / "base"),
        section={**LORA, "modules_to_save": ["score"]},
        auto_class=SEQ_CLS,
        head=LabelHead.unnamed(3),
    )
    rows = [
        {"prompt": f"Say {name}.", "completion": f"{name}!"}
        for name in ["one", "two", "three", "four", "five", "six", "seven", "eight"]
    ]
    (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (work / "r.yaml").write_text(RECIPE.replace("BASE", "./base").replace("REVISION", "main"))
    assert peft(["evaluate", "adapter", "r.yaml", "--quiet"]) == 2
    assert "LlamaForSequenceClassification, which `task: causal-lm` does not score" in capsys.readouterr().err


# -- inspect -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"base_model_name_or_path": None},
        {"base_model_name_or_path": "./gone"},
        {"base_model_name_or_path": "someone/gone"},
        {"task_type": "SORT"},
    ],
)
def test_inspect_needs_no_base(work: Path, changes: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    adapter = stranger(made(work, tiny(work / "kept")), **changes)
    shutil.rmtree(work / "kept")
    assert peft(["inspect", str(adapter), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["facts"]["method"] == "lora"
    assert found["facts"]["parameters"] > 0
    assert "no update norms" in found["notes"][0]


# -- what survives -----------------------------------------------------------------------------------------------


def noted(adapter: Path, style: str) -> None:
    own = json.loads((adapter / "peftcli.json").read_text())
    (adapter / "peftcli.json").write_text(json.dumps({**own, "notes": {"prompt": style}}))


@pytest.mark.parametrize("style", ["plain", "chat"])
def test_notes_and_names_survive_convert_load_and_save(work: Path, style: str) -> None:
    base = tiny(work / "base")
    adapter = made(work, base)
    noted(adapter, style)
    convert_adapter(adapter, to="lora", output=work / "converted", r=2)
    model = load_model(resolve_base(str(base), folder=work))
    adapters.load(model, work / "converted")
    adapters.save(model, work / "again")
    for folder in ("adapter", "converted", "again"):
        assert read_own(work / folder)["notes"]["prompt"] == style, folder
        assert read_own(work / folder)["base"]["name"] == str(base), folder
        assert read_config(work / folder)["base_model_name_or_path"] == str(base), folder
        opened = open_adapter(work / folder)
        assert (chat_note(opened.location) is not None) == (style == "plain")
    assert "converted" in read_own(work / "again")["notes"]


def test_a_name_of_the_hub_survives_a_conversion_with_a_copy_of_the_base(work: Path) -> None:
    adapter = made(work, tiny(work / "base"), name="someone/base")
    convert_adapter(adapter, to="lora", output=work / "converted", r=2, base=str(work / "base"))
    assert read_config(work / "converted")["base_model_name_or_path"] == "someone/base"


def test_chat_with_an_adapter_of_raw_text_says_so(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = made(work, tiny(work / "base"))
    monkeypatch.setattr("sys.stdin", io.StringIO())
    noted(adapter, "plain")
    assert peft(["chat", str(adapter)]) == 0
    assert "trained on raw text, not on conversations" in capsys.readouterr().err
    noted(adapter, "chat")
    assert peft(["chat", str(adapter)]) == 0
    assert "raw text" not in capsys.readouterr().err


# -- the adapter's own files -------------------------------------------------------------------------------------


def test_an_adapter_in_the_hubs_cache_is_read_like_a_base_there(work: Path) -> None:
    adapter = made(work, tiny(work / "base"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(work / "base" / name, adapter / name)
    cached = in_cache(work / "hub", adapter, "someone/adapter")
    assert all(path.is_symlink() for path in cached.iterdir())
    ids = torch.arange(5, 21)[None]
    with torch.inference_mode():
        one, other = (open_adapter(path).model(ids).logits for path in (adapter, cached))
    assert torch.equal(one, other)
    assert peft(["convert", str(cached), "--to", "lora", "--output", "converted", "--quiet"]) == 0
    assert (work / "converted" / "tokenizer.json").is_file()
    assert not (work / "converted" / "tokenizer.json").is_symlink()
    assert peft(["inspect", str(cached), "--quiet"]) == 0


@pytest.mark.parametrize(
    "name",
    ["adapter_config.json", "adapter_model.safetensors", "peftcli.json", "tokenizer.json", "chat_template.jinja"],
)
@pytest.mark.parametrize("how", ["link", "pipe"])
def test_files_of_an_adapter_that_lead_elsewhere_are_refused(work: Path, name: str, how: str) -> None:
    adapter = made(work, tiny(work / "base"))
    for each in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(work / "base" / each, adapter / each)
    (adapter / name).rename(work / "outside") if (adapter / name).exists() else (work / "outside").write_text("x")
    (adapter / name).symlink_to(work / "outside") if how == "link" else os.mkfifo(adapter / name)
    with pytest.raises(ModelError, match="leads outside the folder" if how == "link" else "not a regular file"):
        open_adapter(adapter)


CONFIGURATION_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "a number": ({"r": "eight"}, "`r`"),
    "a list": ({"target_modules": 5}, "target_modules"),
    "a pattern": ({"rank_pattern": {"q_proj": "x"}}, "rank_pattern"),
    "fields that do not go together": ({"init_lora_weights": "orthogonal", "r": 3}, "init_lora_weights"),
    "fields that exclude each other": ({"use_dora": True, "lora_bias": True}, "lora_bias"),
}


@pytest.mark.parametrize("case", CONFIGURATION_FAULTS)
def test_a_configuration_error_names_the_field_and_not_the_whole_file(work: Path, case: str) -> None:
    changes, field = CONFIGURATION_FAULTS[case]
    adapter = stranger(made(work, tiny(work / "base")), **changes)
    with pytest.raises(AdapterError) as caught:
        open_adapter(adapter)
    text = caught.value.render()
    assert field in text
    assert "layers_pattern" not in text, "nothing of the other fields"
    assert len(text) < 500
    assert len(text.splitlines()) <= 5


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"rope_parameters": "none"}, "rope"),
        ({"num_attention_heads": [4]}, "num_attention_heads"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers"),
        ({"hidden_act": "nosuch"}, "`hidden_act` has 'nosuch'"),
        ({"rope_parameters": {"rope_type": "none", "rope_theta": 1e4}}, "`rope_parameters` has 'none'"),
    ],
)
def test_an_error_in_the_configuration_of_a_base_names_the_field(
    work: Path, changes: dict[str, Any], field: str
) -> None:
    base = tiny(work / "base")
    (base / "config.json").write_text(json.dumps({**json.loads((base / "config.json").read_text()), **changes}))
    with pytest.raises(PeftcliError) as caught:
        load_model(resolve_base(str(base), folder=work))
    text = caught.value.render()
    assert field in text
    assert "bos_token_id" not in text
    assert len(text) < 500
