"""A tokenizer as llama.cpp needs it: its kind, its pieces with their types, scores or merges, and how text is cut first.

Two kinds can be written: byte-level BPE (`gpt2` there) whose expression for cutting text is one that llama.cpp has, and
BPE over pieces with `▁` and byte fallback (`llama` there), whose order of merges becomes scores. Any other is refused: a
server that cuts text otherwise feeds the model other tokens than it was trained on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from peftcli.errors import AdapterError

_SPACE = "▁"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_ENDS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CUTS = {
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_ENDS}": "llama-bpe",
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_ENDS}": "qwen2",
    _GPT2: "gpt-2",
}
"""Expression of a byte-level tokenizer -> llama.cpp's name for the same."""


@dataclass
class Vocabulary:
    """What goes into the file. Types are those of `gguf.TokenType`, by name."""

    model: str
    pre: str
    tokens: list[str]
    types: list[str]
    scores: list[float] | None = None
    merges: list[str] | None = None
    add_space_prefix: bool | None = None
    special: dict[str, int] = field(default_factory=dict)
    adds: dict[str, bool] = field(default_factory=dict)


def vocabulary_of(tokenizer: PreTrainedTokenizerBase, rows: int, *, stops: list[int], where: str) -> Vocabulary:
    """The vocabulary for a model that embeds `rows` tokens; `stops`: every id that ends an answer.

    Raises `AdapterError` for a tokenizer that llama.cpp would read otherwise.
    """
    core: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    model = core["model"]
    if model.get("type") != "BPE":
        raise _refused(f"its kind is {model.get('type')}, not BPE", where)
    found = _by_pieces(core, where) if model.get("byte_fallback") else _by_bytes(core, where)
    _place(found, tokenizer, core, rows, where)
    found.special = _special(tokenizer, stops)
    ids = tokenizer("a").input_ids
    plain = tokenizer("a", add_special_tokens=False).input_ids
    found.adds = {"bos": ids[: -len(plain)] != [] and ids[0] == tokenizer.bos_token_id, "eos": ids[-1:] != plain[-1:]}
    return found


def _refused(why: str, where: str) -> AdapterError:
    return AdapterError(
        f"this tokenizer cannot be written for llama.cpp: {why}", where=where, fix="export the adapter alone"
    )


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"])
    return [(left, right) for left, right in pairs]


def _by_bytes(core: Mapping[str, Any], where: str) -> Vocabulary:
    if core.get("normalizer") not in (None, {"type": "NFC"}):
        raise _refused("it changes text before cutting it", where)
    merges = [f"{left} {right}" for left, right in _merges(core["model"])]
    return Vocabulary("gpt2", _cut_of(core.get("pre_tokenizer"), where), [], [], merges=merges)


def _cut_of(pre: Any, where: str) -> str:
    """llama.cpp's name for how text is cut into words."""
    steps = pre["pretokenizers"] if isinstance(pre, dict) and pre.get("type") == "Sequence" else [pre]
    kinds = [step.get("type") if isinstance(step, dict) else None for step in steps]
    last = steps[-1]
    if kinds[-1] != "ByteLevel" or last.get("add_prefix_space"):
        raise _refused("it is not plainly byte-level", where)
    if kinds == ["ByteLevel"] and last.get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and last.get("use_regex", True):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and not last.get("use_regex", True):
        name = CUTS.get(str(steps[0].get("pattern", {}).get("Regex")))
        if name is not None and steps[0].get("behavior") == "Isolated" and not steps[0].get("invert"):
            return name
    raise _refused("llama.cpp has no name for how it cuts text into words", where)


def _by_pieces(core: Mapping[str, Any], where: str) -> Vocabulary:
    model = core["model"]
    score = {left + right: -float(rank) for rank, (left, right) in reversed(list(enumerate(_merges(model))))}
    prefix = _space_prefix(core, where)
    found = Vocabulary("llama", "default", [], [], scores=[], add_space_prefix=prefix)
    # a piece that no merge makes is found as a character or not at all: its score decides nothing
    found.scores = [score.get(piece, 0.0) for piece, _ in sorted(model["vocab"].items(), key=lambda item: item[1])]
    return found


def _space_prefix(core: Mapping[str, Any], where: str) -> bool:
    """Whether a space is put before a text. Raises `AdapterError` where spaces do not simply become `▁`."""
    normalizer, pre = core.get("normalizer"), core.get("pre_tokenizer")
    steps = normalizer["normalizers"] if normalizer and normalizer.get("type") == "Sequence" else [normalizer]
    replaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    if pre is None or (pre.get("type") == "Split" and pre.get("pattern") == {"String": " "}):
        if steps == [{"type": "Prepend", "prepend": _SPACE}, replaces]:
            return True
        if steps == [replaces]:
            return False
    if normalizer is None and isinstance(pre, dict) and pre.get("type") == "Metaspace" and not pre.get("split", True):
        return str(pre.get("prepend_scheme", "always")) != "never"
    raise _refused("it treats spaces in a way that llama.cpp does not have", where)


def _place(
    found: Vocabulary, tokenizer: PreTrainedTokenizerBase, core: Mapping[str, Any], rows: int, where: str
) -> None:
    """One token for each row of the embedding, by id."""
    vocabulary: dict[str, int] = core["model"]["vocab"]
    if max([*vocabulary.values(), *(added["id"] for added in core["added_tokens"])]) >= rows:
        raise _refused(f"it has more tokens than the model's {rows} rows", where)
    tokens: list[str | None] = [None] * rows
    types, scores = ["UNUSED"] * rows, [0.0] * rows
    for place, (piece, number) in enumerate(sorted(vocabulary.items(), key=lambda item: item[1])):
        tokens[number], types[number] = piece, _type_of(piece, core["model"], found.model)
        if found.scores is not None:
            scores[number] = found.scores[place]
    for added in core["added_tokens"]:
        number = added["id"]
        tokens[number] = added["content"]
        is_unknown = found.model == "llama" and added["content"] == core["model"].get("unk_token")
        types[number] = "UNKNOWN" if is_unknown else "CONTROL" if added["special"] else "USER_DEFINED"
    found.tokens = [f"[PAD{number}]" if piece is None else piece for number, piece in enumerate(tokens)]
    found.types = types
    if found.scores is not None:
        found.scores = scores


def _type_of(piece: str, model: Mapping[str, Any], kind: str) -> str:
    if kind != "llama":
        return "NORMAL"
    return "BYTE" if _BYTE.fullmatch(piece) else "UNKNOWN" if piece == model.get("unk_token") else "NORMAL"


def _special(tokenizer: PreTrainedTokenizerBase, stops: list[int]) -> dict[str, int]:
    """`bos`, `eos`, `pad`, `unk` of the tokenizer, and `eot`: the first other token that ends an answer."""
    named = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad", "unk")}
    found = {name: number for name, number in named.items() if isinstance(number, int)}
    other = [number for number in stops if number != found.get("eos")]
    return found | ({"eot": other[0]} if other else {})
