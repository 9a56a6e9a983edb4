"""Adapter folders that somebody else made."""

# ruff: noqa: E501 - a table reads best with an entry a line

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hostile_case import EVIL_MODULE, PAYLOAD, PYTHON_PAYLOAD, Case, Scene, header_bytes

COMMAND = "generate adapter --prompt Hi --model builtin:tiny --set generation.max_new_tokens=1"
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model.model.layers.0.self_attn.q_proj"


def files(change: Callable[[Path, Scene], object]) -> Callable[[Scene], object]:
    return lambda scene: change(scene.adapter(), scene)


def fields(**changes: Any) -> Callable[[Scene], object]:
    def change(folder: Path, scene: Scene) -> None:
        path = folder / CONFIG
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return files(change)


def raw_config(text: str) -> Callable[[Scene], object]:
    return files(lambda folder, scene: (folder / CONFIG).write_text(text))


def raw_tensors(data: bytes) -> Callable[[Scene], object]:
    return files(lambda folder, scene: (folder / TENSORS).write_bytes(data))


def method(peft_type: str, **changes: Any) -> Callable[[Scene], object]:
    """An adapter of another method, with one small tensor and impossible sizes in its configuration."""

    def change(folder: Path, scene: Scene) -> None:
        (folder / "peftcli.json").unlink()
        (folder / CONFIG).write_text(json.dumps({"peft_type": peft_type, "task_type": "CAUSAL_LM", **changes}))
        header = {"prompt_embeddings": {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}}
        (folder / TENSORS).write_bytes(header_bytes(header, bytes(4)))

    return files(change)


def only_pickled(folder: Path, scene: Scene) -> None:
    (folder / TENSORS).unlink()
    (folder / "adapter_model.bin").write_bytes(PAYLOAD)


def beside_pickled(folder: Path, scene: Scene) -> None:
    for name in ("adapter_model.bin", "optimizer.pt", "rng_state.pth", "scheduler.pt", "training_args.bin"):
        (folder / name).write_bytes(PAYLOAD)


def linked(name: str) -> Callable[[Scene], object]:
    def change(folder: Path, scene: Scene) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(scene.outside)

    return files(change)


def piped(name: str) -> Callable[[Scene], object]:
    def change(folder: Path, scene: Scene) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return files(change)


def sparse(folder: Path, scene: Scene) -> None:
    """A good header, and 40 GB behind its tensors."""
    os.truncate(folder / TENSORS, 40 << 30)


def header_with(change: Callable[[dict[str, Any]], object]) -> Callable[[Scene], object]:
    def prepare(folder: Path, scene: Scene) -> None:
        data = (folder / TENSORS).read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        change(header)
        (folder / TENSORS).write_bytes(header_bytes(header, data[8 + length :]))

    return files(prepare)


def first(**facts: Any) -> Callable[[dict[str, Any]], object]:
    return lambda header: header[min(key for key in header if key != "__metadata__")].update(facts)


def twice(folder: Path, scene: Scene) -> None:
    part = json.dumps({PREFIX + ".lora_A.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})[1:-1]
    (folder / TENSORS).write_bytes(header_bytes(f"{{{part}, {part}}}".encode(), bytes(4)))


def evil_base(folder: Path, scene: Scene) -> None:
    base = scene.base()
    path = base / "config.json"
    path.write_text(
        json.dumps(
            {
                **json.loads(path.read_text()),
                "model_type": "evil",
                "auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil"},
            }
        )
    )
    (base / "modeling_evil.py").write_text(PYTHON_PAYLOAD)
    (folder / "peftcli.json").unlink()
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": str(base)}))


def evil_tokenizer(folder: Path, scene: Scene) -> None:
    path = folder / "tokenizer_config.json"
    changes = {"auto_map": {"AutoTokenizer": ["tokenization_evil.Evil", None]}, "tokenizer_class": "Evil"}
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    (folder / "tokenization_evil.py").write_text(PYTHON_PAYLOAD)


def evil_template(folder: Path, scene: Scene) -> None:
    (folder / "chat_template.jinja").write_text("{{ 'x' * 2000000000 }}")


REFUSED = frozenset({2, 4, 6, 8})
"""Told what is wrong with it."""
ANY = frozenset({0, 2, 4, 6, 8})
"""Harmless parts may be passed over."""


def case(
    name: str, prepare: Callable[[Scene], object], *says: str, codes: frozenset[int] = REFUSED, command: str = COMMAND
) -> Case:
    return Case(f"adapter: {name}", "adapter", prepare, codes, says, command)


BENIGN = Case("adapter", "adapter", files(lambda folder, scene: None), frozenset({0}), (), COMMAND)

ADAPTERS = [
    case("pickled", files(only_pickled), "pickled"),
    case("pickles beside", files(beside_pickled), codes=frozenset({0})),
    case("pickle under a safe name", raw_tensors(PAYLOAD), TENSORS),
    case("tensors are a link", linked(TENSORS), "is a link"),
    case("configuration is a link", linked(CONFIG), "is a link"),
    case("our own file is a link", linked("peftcli.json"), "is a link"),
    case("tokenizer is a link", linked("tokenizer.json"), "tokenizer.json is a link"),
    case("tensors are a pipe", piped(TENSORS), TENSORS),
    case("configuration is a pipe", piped(CONFIG), CONFIG),
    case("tokenizer is a pipe", piped("tokenizer.json"), codes=ANY),
    case("header of 2**62 bytes", raw_tensors((1 << 62).to_bytes(8, "little") + b"{}"), "header"),
    case("header larger than the file", raw_tensors((1 << 20).to_bytes(8, "little") + b"{}"), "header"),
    case("header of 17 MB", raw_tensors(header_bytes(b"{" + b" " * (17 << 20) + b"}")), "header"),
    case("header of deep lists", raw_tensors(header_bytes(b"[" * 200_000)), "header"),
    case("header with a million names", raw_tensors(header_bytes(b"{" + b",".join(b'"%d":{"dtype":"F32","shape":[],"data_offsets":[0,0]}' % n for n in range(200_000)) + b"}")), TENSORS),
    case("40 GB, mostly holes", files(sparse), TENSORS),
    case("names that are paths", header_with(lambda header: header.update({"../../x": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}})), "../../x"),
    case("names given twice", files(twice), TENSORS),
    case("huge shape", header_with(first(shape=[2**40, 2**40])), TENSORS),
    case("negative shape", header_with(first(shape=[-2, -128])), TENSORS),
    case("shape of text", header_with(first(shape="abc")), TENSORS),
    case("overlapping tensors", header_with(first(data_offsets=[4, 1028])), TENSORS),
    case("offsets beyond the file", header_with(first(data_offsets=[0, 2**50])), TENSORS),
    case("unknown dtype", header_with(first(dtype="F4096")), TENSORS),
    case("r = 1e8", fields(r=10**8), "r"),
    case("r = 2**63", fields(r=2**63), "r"),
    case("r = 1e400", raw_config('{"peft_type": "LORA", "r": 1e400, "target_modules": ["q_proj"]}'), "r"),
    case("r < 0", fields(r=-1), "`r`"),
    case("r is text", fields(r="8"), "`r`"),
    case("alpha NaN", raw_config('{"peft_type": "LORA", "lora_alpha": NaN, "target_modules": ["q_proj"]}'), "NaN"),
    case("alpha infinite", raw_config('{"peft_type": "LORA", "lora_alpha": 1e999, "target_modules": ["q_proj"]}'), "lora_alpha"),
    case("rank_pattern 1e9", fields(rank_pattern={"q_proj": 10**9}), "r"),
    case("targets: exponential pattern", fields(target_modules="(([a-z_]+)+[.0-9]*)+X"), "target_modules"),
    case("targets: alternatives", fields(target_modules="(.|..|...)*X"), "target_modules"),
    case("targets: many stars", fields(target_modules=".*" * 30 + "X"), "target_modules"),
    case("targets: many question marks", fields(target_modules=".?" * 60 + "." * 60), "target_modules"),
    case("targets: bounded repeats", fields(target_modules="((.{0,15}){0,15}){0,15}X"), "target_modules"),
    case("targets: back reference", fields(target_modules=r"(.*)(.*)(.*)(.*)\1\2\3\4X"), "target_modules"),
    case("targets: 10 kB pattern", fields(target_modules="(a|b)" * 2000), "target_modules"),
    case("exclude: many stars", fields(exclude_modules=".*" * 30 + "X"), "exclude_modules", codes=ANY),
    case("rank pattern: stars", fields(rank_pattern={".*" * 30 + "X": 2}), codes=ANY),
    case("layers: a million", fields(layers_to_transform=list(range(200_000))), "and 199991 more", codes=ANY),
    case("modules to save: all", fields(modules_to_save=["x" * 1000] * 10_000), codes=REFUSED),
    case("auto_mapping", fields(auto_mapping={"base_model_class": "Evil", "parent_library": EVIL_MODULE}), codes=ANY),
    case("megatron_core", fields(megatron_config={"a": 1}, megatron_core=EVIL_MODULE), codes=ANY),
    case("runtime_config", fields(runtime_config={"ephemeral_gpu_offload": True}, loftq_config={"a": EVIL_MODULE}), codes=ANY),
    case("corda_config", fields(corda_config={"cache_file": "../outside", "covariance_file": "../outside"}), codes=ANY),
    case("type is a path", fields(peft_type="../../evil_module"), "peft_type"),
    case("type with escape codes", fields(peft_type="\x1b[31mEVIL\u202e"), "\\x1b[31m"),
    case("configuration of 50 MB", files(lambda folder, scene: os.truncate(folder / CONFIG, 50 << 20)), CONFIG),
    case("configuration of deep lists", raw_config("[" * 100_000), CONFIG),
    case("number of many digits", raw_config('{"peft_type": "LORA", "r": ' + "9" * 100_000 + "}"), CONFIG),
    case("recorded base runs code", files(evil_base), "run its own code", command=COMMAND.replace("--model builtin:tiny ", "")),
    case("tokenizer runs code", files(evil_tokenizer), codes=ANY),
    case("template repeats", files(evil_template), codes=ANY),
    case("prompt of 1e9 tokens", method("PROMPT_TUNING", num_virtual_tokens=10**9, token_dim=128), codes=REFUSED),
    case("prefix of 1e9 tokens", method("PREFIX_TUNING", num_virtual_tokens=10**9, token_dim=64, num_layers=4, num_attention_heads=2), codes=REFUSED),
    case("encoder of 1e9", method("P_TUNING", num_virtual_tokens=2, token_dim=128, encoder_hidden_size=10**9), codes=REFUSED),
    case("prompt tokenizer runs code", method("PROMPT_TUNING", num_virtual_tokens=1, token_dim=128, prompt_tuning_init="TEXT", prompt_tuning_init_text="a", tokenizer_name_or_path="./base", tokenizer_kwargs={"trust_remote_code": True}), codes=REFUSED),
    case("vera of 1e9", method("VERA", r=10**9, target_modules=["q_proj"], projection_prng_key=0, save_projection=False), codes=REFUSED),
    case("loha of 1e9", method("LOHA", r=10**9, alpha=1, target_modules=["q_proj"]), codes=REFUSED),
    case("lokr of 1e9", method("LOKR", r=10**9, alpha=1, target_modules=["q_proj"]), codes=REFUSED),
    case("adalora of 1e9", method("ADALORA", r=10**9, init_r=10**9, target_r=10**9, total_step=10, target_modules=["q_proj"]), codes=REFUSED),
    case("oft of 1e9", method("OFT", oft_block_size=10**9, target_modules=["q_proj"]), codes=REFUSED),
    case("adaption prompt of 1e9", method("ADAPTION_PROMPT", adapter_len=10**9, adapter_layers=4), codes=REFUSED),
]  # fmt: skip
