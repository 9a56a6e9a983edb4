"""`model.gguf`: a whole model folder (merged, or as it was published) in one file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from peftcli.errors import ModelError
from peftcli.exporting.gguf.facts import require_same_arithmetic, rope_factors, write_facts
from peftcli.exporting.gguf.layouts import Layout, TensorNames
from peftcli.exporting.gguf.vocabulary import Vocabulary, vocabulary_of
from peftcli.exporting.gguf.writing import Stored, write_tensors
from peftcli.models.source import BaseSource
from peftcli.models.stored import StoredTensor, main_type, tensors_of_base

NAME = "model.gguf"
_KINDS = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
_HEAD, _TABLE = "lm_head.weight", "embed_tokens.weight"


def write_model(
    path: Path,
    source: BaseSource,
    config: Any,
    tokenizer: PreTrainedTokenizerBase,
    layout: Layout,
    *,
    stops: list[int],
    kind: str | None = None,
    name: str = "model",
) -> str:
    """Writes the file and returns the type of its matrices (default: what the folder has).

    `stops`: every id that ends an answer. Raises `AdapterError` or `ModelError` for what llama.cpp does not have.
    """
    import gguf

    where = source.location
    require_same_arithmetic(config, layout.activation, where)
    tensors = tensors_of_base(source)
    kind = kind or _KINDS[main_type(tensors)]
    vocabulary = vocabulary_of(tokenizer, config.vocab_size, stops=stops, where=where)
    writer = gguf.GGUFWriter(None, layout.architecture)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_file_type(_file_type(kind, gguf))
    write_facts(writer, config, where)
    _write_vocabulary(writer, vocabulary, tokenizer, gguf)
    write_tensors(writer, path, _stored(tensors, config, layout, where), kind)
    return kind


def _file_type(kind: str, gguf: Any) -> Any:
    types = gguf.LlamaFileType
    return {"f32": types.ALL_F32, "f16": types.MOSTLY_F16, "bf16": types.MOSTLY_BF16, "q8_0": types.MOSTLY_Q8_0}[kind]


def _stored(tensors: dict[str, StoredTensor], config: Any, layout: Layout, where: str) -> list[Stored]:
    names = TensorNames(layout, config.num_hidden_layers)
    found: list[Stored] = []
    for name, tensor in tensors.items():
        if name == _HEAD and config.tie_word_embeddings:
            # llama.cpp takes the table of the embeddings where there is no head
            continue
        there = names.of(name)
        if there is None or len(tensor.shape) > 2:
            raise ModelError(
                f"llama.cpp has no place for `{name}` in a `{layout.architecture}` model",
                where=where,
                fix="use llama.cpp's own script",
            )
        found.append(Stored(there, tensor.shape, _reader(tensor, name, config, layout)))
    factors = rope_factors(config)
    if factors is not None:
        found.append(Stored("rope_freqs.weight", tuple(factors.shape), lambda: factors))
    return found


def _reader(tensor: StoredTensor, name: str, config: Any, layout: Layout) -> Callable[[], Tensor]:
    return lambda: layout.stored(name, tensor.read().float(), config)


def _write_vocabulary(writer: Any, found: Vocabulary, tokenizer: PreTrainedTokenizerBase, gguf: Any) -> None:
    writer.add_tokenizer_model(found.model)
    writer.add_tokenizer_pre(found.pre)
    writer.add_token_list(found.tokens)
    writer.add_token_types([gguf.TokenType[name] for name in found.types])
    if found.scores is not None:
        writer.add_token_scores(found.scores)
    if found.merges is not None:
        writer.add_token_merges(found.merges)
    if found.add_space_prefix is not None:
        writer.add_add_space_prefix(found.add_space_prefix)
    for name, number in found.special.items():
        getattr(writer, f"add_{name}_token_id")(number)
    writer.add_add_bos_token(found.adds["bos"])
    writer.add_add_eos_token(found.adds["eos"])
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)
