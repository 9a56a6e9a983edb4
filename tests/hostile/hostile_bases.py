"""Base model folders that somebody else made."""

# ruff: noqa: E501 - a table reads best with an entry a line

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hostile_case import ON_BASE, PAYLOAD, PYTHON_PAYLOAD, Case, Scene, header_bytes
from safetensors import safe_open

PLAN, TRAIN = "plan r.yaml", "train r.yaml --output new --quiet"
INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"


def base(change: Callable[[Path, Scene], object]) -> Callable[[Scene], object]:
    def prepare(scene: Scene) -> None:
        scene.write("r.yaml", ON_BASE)
        folder = scene.base()
        for name in ("modeling_evil.py", "configuration_evil.py", "tokenization_evil.py"):
            (folder / name).write_text(PYTHON_PAYLOAD)
        change(folder, scene)

    return prepare


def edited(name: str, **changes: Any) -> Callable[[Scene], object]:
    def change(folder: Path, scene: Scene) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return base(change)


def config(**changes: Any) -> Callable[[Scene], object]:
    return edited("config.json", **changes)


def index(*names: str) -> Callable[[Scene], object]:
    def change(folder: Path, scene: Scene) -> None:
        shown = {str(number): name.replace("OUTSIDE", str(scene.outside)) for number, name in enumerate(names)}
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": shown}))

    return base(change)


def linked(name: str) -> Callable[[Scene], object]:
    def change(folder: Path, scene: Scene) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(scene.outside)

    return base(change)


def piped(name: str) -> Callable[[Scene], object]:
    def change(folder: Path, scene: Scene) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return base(change)


def raw(name: str, data: bytes) -> Callable[[Scene], object]:
    return base(lambda folder, scene: (folder / name).write_bytes(data))


def only_pickled(folder: Path, scene: Scene) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(PAYLOAD)


def large(name: str, size: int) -> Callable[[Scene], object]:
    def change(folder: Path, scene: Scene) -> None:
        (folder / name).touch()
        os.truncate(folder / name, size)

    return base(change)


def large_tensor(size: int) -> Callable[[Scene], object]:
    """The base's weights with one tensor more, as its header says it, of which no byte was ever written."""

    def change(folder: Path, scene: Scene) -> None:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            header = {"more": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
            place = size
            for name in file.keys():  # noqa: SIM118  it is no dictionary
                count = 4 * file.get_tensor(name).numel()
                shape = list(file.get_slice(name).get_shape())
                header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [place, place + count]}
                place += count
        data = header_bytes(header)
        (folder / WEIGHTS).write_bytes(data)
        os.truncate(folder / WEIGHTS, len(data) + place)

    return base(change)


def tokenizer(**parts: Any) -> Callable[[Scene], object]:
    """The built-in tokenizer with other steps."""
    return edited("tokenizer.json", **parts)


def split_by(pattern: str) -> dict[str, Any]:
    step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [step, byte_level]}


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


DOUBLING = [replace({"Regex": "."}, "zz")] * 40
AROUND = {
    "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "X", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"X": {"id": "X", "ids": [3] * 200_000, "tokens": ["<|x|>"] * 200_000}},
}  # fmt: skip


def templates_elsewhere(folder: Path, scene: Scene) -> None:
    elsewhere = scene.outside.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "tool.jinja").symlink_to(scene.outside)
    (elsewhere / "other.jinja").write_text("{{ 1 }}")
    (folder / "additional_chat_templates").symlink_to(elsewhere)


REFUSED = frozenset({4, 6})
ANY = frozenset({0, 4, 6})


def case(
    name: str, prepare: Callable[[Scene], object], *says: str, codes: frozenset[int] = REFUSED, command: str = PLAN
) -> Case:
    return Case(f"base: {name}", "base", prepare, codes, says, command)


BENIGN = Case("base", "base", base(lambda folder, scene: None), frozenset({0}), (), TRAIN)

BASES = [
    case("auto_map of a family that is built in", config(auto_map={"AutoConfig": "configuration_evil.Evil", "AutoModelForCausalLM": "modeling_evil.Evil"}), codes=frozenset({0}), command=TRAIN),
    case("auto_map of an unknown family", config(model_type="evil", auto_map={"AutoConfig": "configuration_evil.Evil"}), "run its own code"),
    case("auto_map inside", config(text_config={"auto_map": {"AutoModel": "modeling_evil.Evil"}}), "run its own code"),
    case("auto_map deep inside", config(a={"b": {"c": {"d": {"e": {"f": {"auto_map": {"AutoModel": "modeling_evil.Evil"}}}}}}}), "run its own code"),
    case("auto_map in a list", config(parts=[{"auto_map": {"AutoModel": "modeling_evil.Evil"}}]), "run its own code"),
    case("trust_remote_code", config(trust_remote_code=True), "run its own code"),
    case("internal attention", config(_attn_implementation_internal="evil/kernel"), "run its own code"),
    case("attention from the Hub", config(attn_implementation="evil/kernel", _attn_implementation="evil/kernel"), "run its own code", command=TRAIN),
    case("experts from the Hub", config(experts_implementation="evil/kernel"), "run its own code", command=TRAIN),
    case("custom generate", edited("generation_config.json", custom_generate="evil"), codes=ANY, command=TRAIN),
    case("tokenizer runs code", edited("tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_evil.Evil", None]}, tokenizer_class="Evil"), codes=ANY),
    case("index leads up", index("../outside"), "not a plain file name", command=TRAIN),
    case("index is absolute", index("OUTSIDE"), "not a plain file name", command=TRAIN),
    case("index with NUL", index("a\0b.safetensors"), "not a plain file name", command=TRAIN),
    case("index with a long name", index("a" * 5000 + ".safetensors"), "missing", command=TRAIN),
    case("index of pickles", index("pytorch_model.bin"), "not a plain file name", command=TRAIN),
    case("index of deep lists", raw(INDEX, b"[" * 200_000), "index is damaged", command=TRAIN),
    case("index of 1 GB", large(INDEX, 1 << 30), INDEX, command=TRAIN),
    case("index is a pipe", piped(INDEX), codes=ANY, command=TRAIN),
    case("index of an empty folder name", index(".safetensors"), command=TRAIN),
    case("weights are a pipe", piped(WEIGHTS), "not a regular file", command=TRAIN),
    case("weights are a link", linked(WEIGHTS), WEIGHTS, command=TRAIN),
    case("weights are pickled", base(only_pickled), "only pickled weights", command=TRAIN),
    case("weights are a pickle", raw(WEIGHTS, PAYLOAD), command=TRAIN),
    case("weights with a header bomb", raw(WEIGHTS, (1 << 62).to_bytes(8, "little")), command=TRAIN),
    case("weights of 40 GB holes", large(WEIGHTS, 40 << 30), "bytes for tensors of", command=TRAIN),
    case("weights of 40 GB holes to lock", large(WEIGHTS, 40 << 30), "bytes for tensors of", command="lock r.yaml"),
    case("weights of 40 GB holes that a header tells", large_tensor(40 << 30), "were never written", command=TRAIN),
    case("weights of 40 GB holes that a header tells, to lock", large_tensor(40 << 30), "were never written", command="lock r.yaml"),
    case("weights that are cut", base(lambda folder, scene: os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size - 4)), "bytes for tensors of", command=TRAIN),
    case("weights with a header of small things", raw(WEIGHTS, header_bytes(b'{"a": [' + b"{}," * (7 << 20) + b"{}]}")), "damaged", command=TRAIN),
    case("weights with a header of 30 MB", raw(WEIGHTS, header_bytes(b" " * (30 << 20))), "header does not fit", command=TRAIN),
    case("configuration is a pipe", piped("config.json"), "config.json"),
    case("configuration is a link", linked("config.json"), "config.json"),
    case("configuration of 10 MB", large("config.json", 10 << 20), "config.json"),
    case("configuration of deep lists", raw("config.json", b'{"a":' * 100_000), "config.json"),
    case("tokenizer is a pipe", piped("tokenizer.json"), "tokenizer"),
    case("tokenizer is a link", linked("tokenizer.json"), "tokenizer"),
    *[
        case(f"tokenizer: {name}", tokenizer(**parts), "the tokenizer of")
        for name, parts in [
            ("splits for ever", {"pre_tokenizer": split_by("(x+x+)+y")}),
            ("splits by powers", {"pre_tokenizer": split_by("^(([a-z])+.)+[A-Z]([a-z])+$")}),
            ("normalizes for ever", {"normalizer": replace({"Regex": "(a+)+$"}, "z")}),
            ("doubles", {"normalizer": {"type": "Sequence", "normalizers": DOUBLING}}),
            ("puts text in front", {"normalizer": {"type": "Prepend", "prepend": "x" * 2_000_000}}),
            ("puts tokens around", {"post_processor": AROUND}),
            ("decodes to much more", {"decoder": {"type": "Sequence", "decoders": [replace({"String": "a"}, "a" * 10_000)] * 4}}),
            ("decodes by doubling", {"decoder": {"type": "Sequence", "decoders": DOUBLING}}),
        ]
    ],
    case("tokenizer: a pattern that is none", tokenizer(pre_tokenizer=split_by("(a")), "tokenizer"),
    case("tokenizer: deep lists", raw("tokenizer.json", b'{"model": ' + b"[" * 200_000), "tokenizer"),
    case("tokenizer: of 1 GB", large("tokenizer.json", 1 << 30), "tokenizer"),
    case("templates are elsewhere", base(templates_elsewhere), "outside"),
    case("a billion layers", config(num_hidden_layers=10**9), "num_hidden_layers"),
    case("a million layers", config(num_hidden_layers=10**6), "num_hidden_layers"),
    case("ten thousand layers", config(num_hidden_layers=10**4), "num_hidden_layers"),
    *[
        case(f"{key} of zero", config(**{key: 0}), f"`{key}` is 0")
        for key in ("num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size", "hidden_size", "intermediate_size")
    ],
    case("a billion labels", config(num_labels=10**9), "num_labels", command=TRAIN),
    case("a list from two numbers", config(model_type="gpt_neo", attention_types=[[["global"], 10**9]], num_layers=12), "without its weights"),
    *[
        case(f"attention of its own: {name}", config(_attn_implementation=name, attn_implementation=name), codes=frozenset({0}), command=TRAIN)
        for name in ("flex_attention", "flash_attention_2", "evil")
    ],
    case("numbers in place of names", config(hidden_act=[1], rope_parameters=3), codes=ANY, command=TRAIN),
    case("a family that is a list", config(model_type=["llama"]), command=TRAIN),
    case("a width of 2**40", config(hidden_size=2**40, intermediate_size=2**40), command=TRAIN),
    case("a vocabulary of 2**40", config(vocab_size=2**40), codes=REFUSED | {9}, command=TRAIN),
    case("layers below zero", config(num_hidden_layers=-3), command=TRAIN),
    case("numbers that are text", config(hidden_size="128; import os"), command=TRAIN),
    case("quantized by nobody", config(quantization_config={"quant_method": "evil_module"}), "not supported yet", command=TRAIN),
    case("an adapter inside", base(lambda folder, scene: (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "auto_mapping": {"parent_library": "evil_module", "base_model_class": "X"}}')), codes=ANY, command=TRAIN),
    case("template repeats", base(lambda folder, scene: (folder / "chat_template.jinja").write_text("{{ 'x' * 2000000000 }}"))),
    case("template is a link", base(lambda folder, scene: ((folder / "chat_template.jinja").unlink(missing_ok=True), (folder / "chat_template.jinja").symlink_to(scene.outside))), codes=ANY),
]  # fmt: skip
