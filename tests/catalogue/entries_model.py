"""Base models, tokenizers and adapters."""

# ruff: noqa: E501 - a table reads best with an entry a line

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from entry import CHAT, GOOD, ON_BASE, ON_ROWS, ROWS, Entry, Place, edit_json
from safetensors.torch import load_file, save_file

PLAN = "plan r.yaml"
TRAIN = "train r.yaml --output new --quiet"
GENERATE = "generate run/adapter --prompt Hi --model builtin:tiny"


def base(change: Callable[[Any], object]) -> Callable[[Place], object]:
    return lambda place: change(place.base())


def without_weights(folder: Any) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def sharded(names: dict[str, str]) -> Callable[[Any], None]:
    def change(folder: Any) -> None:
        (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))

    return change


def cut_weights(folder: Any) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[: len(data) // 2])


def fewer_weights(folder: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file(
        {k: v for k, v in tensors.items() if "layers.1.mlp" not in k}, folder / "model.safetensors", {"format": "pt"}
    )


def more_tokens(folder: Any) -> None:
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text())
    document["added_tokens"] += [
        {"id": 5000 + n, "content": f"<new{n}>", "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True} for n in range(3)
    ]  # fmt: skip
    path.write_text(json.dumps(document))


def without_tokens(*names: str) -> Callable[[Any], None]:
    def change(folder: Any) -> None:
        path = folder / "tokenizer_config.json"
        document = json.loads(path.read_text())
        path.write_text(json.dumps({key: value for key, value in document.items() if key not in names}))

    return change


def without_template(folder: Any) -> None:
    for path in folder.glob("*.jinja"):
        path.unlink()
    without_tokens("chat_template")(folder)


def config(**changes: Any) -> Callable[[Place], object]:
    return base(lambda folder: edit_json(folder / "config.json", **changes))


def targets(text: str) -> str:
    return GOOD.replace("[q_proj, v_proj]", text)


BASE_ROWS = ON_ROWS.replace("builtin:tiny", "./base")

MODELS = [
    Entry("69 no folder", 4, ("no such model folder", "config.json"), recipe=ON_BASE, command=PLAN),
    Entry("69 a file", 4, ("is a file, not a model folder", "base"), recipe=ON_BASE, command=PLAN, files={"base": "x"}),
    Entry("69 an empty folder", 4, ("has no config.json", "base"), recipe=ON_BASE, command=PLAN, files={"base/notes.md": "x"}),
    Entry("69 unknown builtin", 4, ("tny", "builtin:tiny"), recipe=ON_BASE.replace("./base", "builtin:tny"), command=PLAN),
    Entry("69 no Hub id", 4, ("builtin-tiny:x is neither a path nor a Hub id", "r.yaml:1", "builtin:NAME"), recipe=ON_BASE.replace("./base", "builtin-tiny:x")),
    Entry("68 model offline", 11, ("nobody/nothing", "cannot be reached", "builtin:tiny"), recipe=ON_BASE.replace("./base", "nobody/nothing"), command=PLAN),
    Entry("70 unknown family", 4, ("family", "model_type", "transformers"), recipe=ON_BASE, command=PLAN, prepare=config(model_type="evilformer")),
    Entry("71 no language model", 4, ("(vit)", "AutoModelForCausalLM", "for this task"), recipe=ON_BASE, command=PLAN, prepare=config(model_type="vit")),
    Entry("72 pickled weights", 4, ("only pickled weights", "pytorch_model.bin", "save_pretrained"), recipe=ON_BASE, command=TRAIN, prepare=base(without_weights)),
    Entry("73 shard missing", 4, ("model-00002-of-00002.safetensors is missing", "download"), recipe=ON_BASE, command=TRAIN,
          prepare=base(sharded({"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}))),
    Entry("73 shard elsewhere", 4, ("'../x.safetensors'", "not a plain file name"), recipe=ON_BASE, command=TRAIN, prepare=base(sharded({"a": "../x.safetensors"}))),
    Entry("73 half the weights", 4, ("is damaged", "download"), recipe=ON_BASE, command=TRAIN, prepare=base(cut_weights)),
    Entry("73 weights missing", 4, ("of its weights", "mlp", "download"), recipe=ON_BASE, command=TRAIN, prepare=base(fewer_weights)),
    Entry("73 weights do not fit", 4, ("do not fit its config.json", "download"), recipe=ON_BASE, command=TRAIN, prepare=config(intermediate_size=64)),
    Entry("74 no pad token", 0, ("steps",), recipe=ON_BASE, command=PLAN, prepare=base(without_tokens("pad_token"))),
    Entry("75 no end token", 4, ("end token", "eos_token"), recipe=BASE_ROWS.replace("./rows.jsonl", "{train: ./rows.jsonl, format: segments}"), files={"rows.jsonl": ROWS}, command=PLAN, prepare=base(without_tokens("eos_token"))),
    Entry("76 no template", 4, ("no chat template", "model.chat_template", "prompt and completion"), recipe=BASE_ROWS, command=PLAN,
          files={"rows.jsonl": CHAT}, prepare=base(without_template)),
    Entry("76 template missing", 4, ("no such chat template", "t.jinja", "model.chat_template"), recipe=ON_ROWS.replace("builtin:tiny", "{base: builtin:tiny, chat_template: t.jinja}"),
          command=PLAN, files={"rows.jsonl": CHAT}),
    Entry("77 template fails", 4, ("chat template, line 2", "rows.jsonl:1"), recipe=ON_ROWS.replace("builtin:tiny", "{base: builtin:tiny, chat_template: t.jinja}"),
          command=PLAN, files={"rows.jsonl": CHAT, "t.jinja": "a\n{{ messages[0].content + 1 }}"}),
    Entry("77 template malformed", 4, ("not valid Jinja", "line 1"), recipe=ON_ROWS.replace("builtin:tiny", "{base: builtin:tiny, chat_template: t.jinja}"),
          command=PLAN, files={"rows.jsonl": CHAT, "t.jinja": "{% for %}"}),
    Entry("78 vocabulary", 4, ("tokens, the base embeds 1600", "belongs to the base"), recipe=ON_BASE, command=PLAN, prepare=base(more_tokens)),
    Entry("80 no target", 4, ("`k_porj`", "k_proj"), recipe=targets("[k_porj]"), command=PLAN),
    Entry("80 nothing near", 4, ("`zzz`", "q_proj"), recipe=targets("[zzz]"), command=PLAN),
    Entry("80 pattern", 4, ("matches nothing",), recipe=targets("'.*zzz'"), command=PLAN),
    Entry("81 some targets", 4, ("`k_porj`", "`up_porj`", "k_proj"), recipe=targets("[q_proj, k_porj, up_porj]"), command=PLAN),
    Entry("82 kind of layer", 4, ("RMSNorm", "cannot adapt", "linear"), recipe=targets("[input_layernorm]"), command=PLAN, lines=34),
    Entry("93 beyond the context", 0, ("exceeds the base's context of 1024",), recipe=GOOD.replace("160", "2000"), command=PLAN),
    Entry("94 an adapter as base", 4, ("is an adapter, not a base", "model.init_adapter"), recipe=ON_BASE, command=PLAN, files={"base/adapter_config.json": "{}"}),
    Entry("own code", 4, ("run its own code (`auto_map`", "built in"), recipe=ON_BASE, command=PLAN, prepare=config(model_type="x", auto_map={"AutoModelForCausalLM": "x.Y"})),
    Entry("config not JSON", 4, ("config.json is not valid JSON", "download"), recipe=ON_BASE, command=PLAN, files={"base/config.json": "{"}),
]  # fmt: skip


# -- adapters ----------------------------------------------------------------------------------------------------


def adapter(change: Callable[[Any], object]) -> Callable[[Place], object]:
    return lambda place: change(place.run() / "adapter")


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Place], object]:
    def prepare(folder: Any) -> None:
        path = folder / "adapter_model.safetensors"
        found = load_file(path)
        change(found)
        save_file(found, path, {"format": "pt"})

    return adapter(prepare)


def fields(**changes: Any) -> Callable[[Place], object]:
    return adapter(lambda folder: edit_json(folder / "adapter_config.json", **changes))


def first(found: dict[str, torch.Tensor], change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    key = min(found)
    found[key] = change(found[key])


def with_nan(tensor: torch.Tensor) -> torch.Tensor:
    tensor.view(-1)[0] = float("nan")
    return tensor


def another_base(place: Place) -> None:
    place.run()
    folder = place.base("other")
    found = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    found["model.norm.weight"] = found["model.norm.weight"] + 0.5
    save_file(found, folder / "model.safetensors", {"format": "pt"})


def pickled(folder: Any) -> None:
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04.")


def cut(folder: Any) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


ADAPTERS = [
    Entry("83 another base", 4, ("another base (builtin:tiny)", "run/adapter", "trained on"), command="generate run/adapter --prompt Hi --model ./other", prepare=another_base),
    Entry("84 shapes", 4, ("has shape", "this model needs", "adapter_model.safetensors"), command=GENERATE, prepare=tensors(lambda found: first(found, lambda t: t[:, :7].contiguous()))),
    Entry("85 missing", 4, ("is missing", "adapter_model.safetensors"), command=GENERATE, prepare=tensors(lambda found: found.pop(min(found)))),
    Entry("85 extra", 4, ("`foo.weight` has no counterpart",), command=GENERATE, prepare=tensors(lambda found: found.update({"foo.weight": torch.ones(2)}))),
    Entry("86 NaN", 8, ("not finite", "adapter_model.safetensors", "earlier checkpoint"), command=GENERATE, prepare=tensors(lambda found: first(found, with_nan))),
    Entry("86 NaN to merge", 8, ("not finite", "adapter_model.safetensors"), command="merge run --output m", prepare=tensors(lambda found: first(found, with_nan))),
    Entry("87 whole numbers", 4, ("has type I64",), command=GENERATE, prepare=tensors(lambda found: first(found, lambda t: t.long()))),
    Entry("88 unknown type", 4, ("peft_type 'EVIL'", "adapter_config.json", "LORA"), command=GENERATE, prepare=fields(peft_type="EVIL")),
    Entry("88 no type", 4, ("`peft_type`", "adapter_config.json"), command=GENERATE, prepare=fields(peft_type=None)),
    Entry("88 wrong value", 4, ("`r`", "adapter_config.json"), command=GENERATE, prepare=fields(r="8")),
    Entry("89 newer format", 4, ("has format 99", "newer peftcli"), command=GENERATE, prepare=adapter(lambda folder: edit_json(folder / "peftcli.json", format=99))),
    Entry("no adapter", 4, ("no such run or adapter folder", "check the path"), command="generate nowhere --prompt Hi"),
    Entry("report of nothing", 4, ("neither a run nor an adapter", "name a run"), command="report ."),
    Entry("neither run nor adapter", 4, ("neither a run nor an adapter", "name a run"), command="inspect .", recipe=None, files={"x": ""}),
    Entry("a file as adapter", 4, ("is a file", "name the folder"), command="generate r.yaml --prompt Hi"),
    Entry("no base recorded", 4, ("which base", "--model"), command="generate run/adapter --prompt Hi",
          prepare=adapter(lambda folder: ((folder / "peftcli.json").unlink(), edit_json(folder / "adapter_config.json", base_model_name_or_path=None)))),
    Entry("pickled adapter", 4, ("pickled (adapter_model.bin)", "convert it"), command=GENERATE, prepare=adapter(pickled)),
    Entry("half an adapter", 4, ("adapter_model.safetensors is damaged", "again"), command=GENERATE, prepare=adapter(cut)),
    Entry("adapter's file not JSON", 4, ("adapter_config.json is not valid JSON",), command=GENERATE, prepare=adapter(lambda folder: (folder / "adapter_config.json").write_text("{"))),
    Entry("cannot merge", 4, ("prompt_tuning cannot be merged", "serve"), recipe=GOOD.replace("{type: lora, r: 2, target_modules: [q_proj, v_proj]}", "prompt_tuning"),
          command="merge prompts --output m", prepare=lambda place: prompt_run(place)),
    Entry("merge exists", 6, ("already exists", "--output"), command="merge run --output run", prepare=lambda place: place.run()),
    Entry("merge type", 2, ("unknown dtype 'fp8'", "float32"), command="merge run --output m --dtype fp8", prepare=lambda place: place.run()),
    Entry("merge shards", 2, ("cannot read the size 'big'", "2GB"), command="merge run --output m --max-shard-size big", prepare=lambda place: place.run()),
    Entry("bare adapter to evaluate", 2, ("has no recipe", "name a recipe"), command="evaluate adapter", prepare=lambda place: place.adapter()),
    Entry("override without effect", 2, ("--set method.r=3 has no effect", "generation"), command="generate run --prompt Hi --set method.r=3", prepare=lambda place: place.run()),
]  # fmt: skip


def prompt_run(place: Place) -> None:
    from peftcli.cli.entry import run as peft

    assert peft(["train", "r.yaml", "--output", "prompts", "--quiet"]) == 0
