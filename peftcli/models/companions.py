"""The files that lie beside the weights: tokenizer, template, processor, licence. What is unchanged is carried over byte
for byte, since every library that writes such files writes them a little differently."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from peftcli import files, folders
from peftcli.data.tokens import KWARGS, template_kwargs
from peftcli.errors import ModelError
from peftcli.models.own_files import is_own_file
from peftcli.models.snapshot import TEMPLATES_FOLDER, snapshot
from peftcli.models.source import CONFIG_NAME, BaseSource
from peftcli.models.structure import input_embedding
from peftcli.models.tokenizer import load_tokenizer

GENERATION_NAME = "generation_config.json"
TEMPLATE_NAME = "chat_template.jinja"
"""The chat template in a file of its own, as newer releases of transformers keep it."""
_CONFIG_LIMIT_BYTES = 64 << 20
_TOKENIZER_CONFIG = "tokenizer_config.json"
_TOKENIZER_NAME = re.compile(
    r"tokenizer.*|.*\.(tiktoken|model|jinja)|special_tokens_map\.json|added_tokens\.json|vocab.*\.(json|txt)"
    r"|merges\.txt|chat_template\.json|.*processor(_config)?\.json"
)
_WEIGHTS_NAME = re.compile(r".*\.(safetensors|bin|pt|pth|ckpt|h5|msgpack|onnx|gguf|ot|npz|index\.json)")
"""Weights in any format: the copies of other libraries would be those of the base."""
_OURS = frozenset({CONFIG_NAME, GENERATION_NAME, "adapter_config.json", "peftcli.json"})


def files_beside_weights(folder: Path) -> dict[str, Path]:
    """Name -> path of every regular file of a model folder that is neither weights nor one of the two configurations."""
    found = {
        path.name: path
        for path in sorted(folder.iterdir())
        if not path.name.startswith(".")
        and path.name not in _OURS
        and not _WEIGHTS_NAME.fullmatch(path.name)
        and is_own_file(path, folder)
    }
    templates = sorted((folder / TEMPLATES_FOLDER).glob("*.jinja"))
    return found | {f"{TEMPLATES_FOLDER}/{path.name}": path for path in templates if is_own_file(path, folder)}


def is_tokenizer_name(name: str) -> bool:
    """Whether a file of this name may be part of a tokenizer or processor."""
    return _TOKENIZER_NAME.fullmatch(name) is not None


def tokenizer_files(folder: Path) -> dict[str, Path]:
    """Those of them that a tokenizer or processor consists of."""
    return {name: path for name, path in files_beside_weights(folder).items() if is_tokenizer_name(name)}


def write_tokenizer(staging: folders.StagedFolder, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """The files of a tokenizer that was read from `folder`: as they are there, but for a template that was replaced.

    Written anew only where the copies would not give the same tokenizer.
    """
    found = {name: path for name, path in tokenizer_files(folder).items()}
    original = _loaded(folder) if found else None
    if original is not None and same_tokenizer(original, tokenizer):
        for name, path in found.items():
            staging.copy(path, name)
    elif original is not None and same_vocabulary(original, tokenizer) and _is_plain(original, tokenizer):
        replaced = tokenizer.chat_template if tokenizer.chat_template != original.chat_template else None
        _write_chats(staging, found, replaced, template_kwargs(tokenizer))
    else:
        _write_anew(staging, tokenizer)


def _loaded(folder: Path) -> PreTrainedTokenizerBase | None:
    try:
        return load_tokenizer(BaseSource(str(folder), str(folder), None, folder))
    except ModelError:
        return None


def same_tokenizer(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers give the same ids for every text, special token and conversation."""
    return _same_chats(one, other) and same_vocabulary(one, other)


def _same_chats(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    return one.chat_template == other.chat_template and template_kwargs(one) == template_kwargs(other)


def same_vocabulary(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether they do for every text and special token, whatever conversations look like."""
    return _core(one) == _core(other) and _special(one) == _special(other)


def _core(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What turns text into ids. Truncation and padding are how a call was made, and stay behind in the object."""
    core: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return {key: value for key, value in core.items() if key not in ("truncation", "padding")}


def _special(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Special tokens but the pad token, which never shows in an answer and which a base may not have."""
    return {name: str(value) for name, value in tokenizer.special_tokens_map.items() if name != "pad_token"}


def _is_plain(original: PreTrainedTokenizerBase, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template is one text, or the base's own whatever it is."""
    return isinstance(tokenizer.chat_template, str) or tokenizer.chat_template == original.chat_template


def _write_chats(
    staging: folders.StagedFolder, found: Mapping[str, Path], template: str | None, kwargs: Mapping[str, Any]
) -> None:
    """The files with another template (None: their own) and other variables for it."""
    config = found.get(_TOKENIZER_CONFIG)
    document = {} if config is None else json.loads(files.read_bounded(config, limit_bytes=64 << 20))
    named = {key: value for key, value in document.items() if key != KWARGS} | (
        {KWARGS: dict(kwargs)} if kwargs else {}
    )
    if template is not None:
        named.pop("chat_template", None)
        staging.write(TEMPLATE_NAME, template.encode("utf-8"))
    if named != document or config is not None:
        staging.write_json(_TOKENIZER_CONFIG, named)
    for name, path in found.items():
        if name != _TOKENIZER_CONFIG and (template is None or name not in (TEMPLATE_NAME, "chat_template.json")):
            staging.copy(path, name)


def _write_anew(staging: folders.StagedFolder, tokenizer: PreTrainedTokenizerBase) -> None:
    backend = tokenizer.backend_tokenizer
    truncation, padding = backend.truncation, backend.padding
    backend.no_truncation()
    backend.no_padding()
    try:
        with staging.scratch() as scratch:
            tokenizer.save_pretrained(scratch)
    finally:
        if truncation is not None:
            backend.enable_truncation(**truncation)
        if padding is not None:
            backend.enable_padding(**padding)


# -- stop tokens ---------------------------------------------------------------------------------------------------


def write_generation_config(
    staging: folders.StagedFolder,
    source: BaseSource,
    model: nn.Module,
    stops: list[int],
    settings: Mapping[str, Any] | None = None,
) -> None:
    """`generation_config.json` with every token that ends an answer, for a model that writes text; `settings` (keys of
    that file) over the base's own."""
    own = getattr(model, "generation_config", None)
    path = snapshot(source).folder / GENERATION_NAME
    raw = files.read_bounded(path, limit_bytes=_CONFIG_LIMIT_BYTES) if path.is_file() else None
    if raw is None and own is None:
        return
    fallback = {} if own is None else json.loads(own.to_json_string(use_diff=True))
    writes = own is not None
    data = generation_document(
        raw, stops if writes else [], fallback=fallback, settings=(settings or {}) if writes else {}
    )
    if data is not None:
        staging.write(GENERATION_NAME, data)


def generation_document(
    raw: bytes | None,
    stops: list[int],
    *,
    fallback: Mapping[str, Any],
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> bytes | None:
    """`generation_config.json` that names every stop token and has the `settings`; the base's own bytes where it does so
    already.

    `raw`: the base's file, None where it has none; `fallback` is then what a new file says, written only where
    something is missing in it. None: no file is needed.
    """
    document: dict[str, Any] = dict(fallback) if raw is None else json.loads(raw)
    named = document.get("eos_token_id")
    before = list(named) if isinstance(named, list) else [] if named is None else [named]
    missing = [token for token in stops if token not in before]
    changed = {key: value for key, value in settings.items() if document.get(key) != value}
    if not missing and not changed:
        return raw
    every = [*before, *missing]
    if missing:
        document["eos_token_id"] = every[0] if len(every) == 1 else every
    if "max_new_tokens" in changed:
        # the length with its prompt, which would stand against it
        document.pop("max_length", None)
    document |= changed
    return files.to_json(document).encode("utf-8")


# -- vocabulary ----------------------------------------------------------------------------------------------------


_ROLES_IN_TEXT = frozenset(
    {
        "bos_token",
        "eos_token",
        "unk_token",
        "sep_token",
        "pad_token",
        "cls_token",
        "mask_token",
        "additional_special_tokens",
    }
)


def check_vocabulary(model: nn.Module, tokenizer: PreTrainedTokenizerBase, where: str) -> frozenset[int]:
    """Raises `ModelError` for a tokenizer with tokens of text that the model has no embedding row for.

    Returns the others without a row: places for images or sound, which the tokenizer of a family has and its text models
    do not embed (Gemma 3 with 1B). No row of text may hold them.
    """
    embedding = input_embedding(model)
    rows = None if embedding is None else getattr(embedding, "num_embeddings", None)
    if rows is None:
        return frozenset()
    vocabulary = tokenizer.get_vocab()
    beyond = {token: number for token, number in vocabulary.items() if number >= rows}
    named = tokenizer.special_tokens_map.items()
    elsewhere = {str(token) for role, token in named if role not in _ROLES_IN_TEXT and isinstance(token, str)}
    if beyond.keys() - elsewhere:
        raise ModelError(
            f"the tokenizer has {max(beyond.values()) + 1} tokens, the base embeds {rows}",
            where=where,
            fix="use the tokenizer that belongs to the base",
        )
    return frozenset(beyond.values())
