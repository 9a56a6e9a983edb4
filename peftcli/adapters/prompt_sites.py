"""Where a prompt enters a model: found from the module tree, not from a list of model classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from peftcli.adapters.base import Shapes
from peftcli.adapters.base_modules import named_base_modules
from peftcli.adapters.prompts import PROMPT_KEY
from peftcli.errors import AdapterError
from peftcli.models.spelling import cache_name, check_memory_is_known, forward_names
from peftcli.models.structure import structure
from peftcli.models.trace import participation


@dataclass(frozen=True)
class Positions:
    """How a backbone counts positions."""

    taken: bool
    """Whether its forward pass takes `position_ids`."""
    from_ids: bool
    """Counted over ids that are not padding (RoBERTa), with an offset, where none are passed."""
    first: int
    """Position of a row's first token."""
    limit: int | None
    """How many there are, where they are learned one by one."""

    def check_room(self, n: int, length: int) -> None:
        """Raises `AdapterError` when a prompt of n and `length` tokens need more positions than there are."""
        if self.limit is not None and n + length > self.limit:
            raise AdapterError(
                f"{n} virtual and {length} real tokens need more than the {self.limit} positions of this model",
                fix=f"use at most {max(self.limit - n, 0)} tokens a row, or fewer virtual tokens",
            )


@dataclass(frozen=True)
class PromptSites:
    """The modules that a prompt is hooked to, and what their forward passes want."""

    backbone: nn.Module
    """Receives ids and mask, gives hidden states; the encoder of an encoder-decoder model."""
    embedding: nn.Module
    """Embeds the backbone's ids."""
    reader: nn.Module | None
    """The decoder of an encoder-decoder model."""
    placeholder: int
    """A token id that is not padding."""
    strips: bool
    """Whether the backbone's output loses the prompt again."""
    positions: Positions


@dataclass(frozen=True)
class CacheSite:
    """The module whose self-attentions a prefix is put in front of, and the shape of its layers' keys."""

    backbone: nn.Module
    """The decoder, or an encoder that stands alone."""
    num_layers: int
    num_heads: int
    """Heads of keys and values, fewer than those of queries where these share them."""
    head_dim: int
    reads_encoder: bool
    """Whether it has cross-attentions, which keep a cache of their own."""
    keeps_cache: bool
    """Whether it can generate; an encoder cannot."""
    positions: Positions

    @property
    def width(self) -> int:
        """Numbers that one virtual token holds."""
        return 2 * self.num_layers * self.num_heads * self.head_dim

    def slot(self, layer: int) -> int:
        """Where a layer's keys stand among the 2 x num_layers slots of a virtual token; its values follow.

        An encoder-decoder of the reference reads four slots a layer, two of them unused, from a prefix that it repeats.
        """
        return (4 * layer) % (2 * self.num_layers) if self.reads_encoder else 2 * layer


def cache_site(model: nn.Module) -> CacheSite:
    """The site of a prefix. Raises `AdapterError` where the model takes no keys and values from outside."""
    if not hasattr(model, "get_input_embeddings"):
        raise AdapterError("prompt methods need a transformers model, with an input embedding")
    paired = is_encoder_decoder(model)
    backbone = model.get_decoder() if paired else decoder_backbone(model)  # type: ignore[operator]
    check_memory_is_known(backbone)
    if cache_name(backbone) is None:
        raise AdapterError(
            f"prefix tuning puts keys and values into the cache, and {type(backbone).__name__} takes none",
            fix="use prompt_tuning or lora",
        )
    num_layers, num_heads, head_dim = _key_shape(backbone.config, paired)
    return CacheSite(
        backbone=backbone,
        num_layers=num_layers,
        num_heads=num_heads,
        head_dim=head_dim,
        reads_encoder=paired,
        keeps_cache=_is_causal(backbone),
        positions=_positions(model, backbone),
    )


def _key_shape(config: Any, paired: bool) -> tuple[int, int, int]:
    """Layers, heads of keys, width of a head."""
    text = config if paired or not hasattr(config, "get_text_config") else config.get_text_config()
    num_layers = _first(text, "num_decoder_layers", "decoder_layers", "num_hidden_layers")
    queries = _first(text, "decoder_attention_heads", "num_attention_heads")
    heads = _first(text, "num_key_value_heads", default=queries)
    if not (num_layers and queries):
        raise AdapterError(
            "prefix tuning needs attention in every layer, and this model has none",
            fix="use prompt_tuning or lora",
        )
    # Falcon's first generation: one head of keys, though the configuration has a number for both
    if getattr(text, "multi_query", False) and not getattr(text, "new_decoder_architecture", False):
        heads = 1
    # where queries share keys, `hidden_size // queries` is the width of both
    return num_layers, heads, _first(text, "head_dim", "d_kv", default=text.hidden_size // queries)


def _first(config: Any, *names: str, default: int = 0) -> int:
    """The first of these fields that the configuration has a number for."""
    return next((int(getattr(config, name)) for name in names if getattr(config, name, None)), default)


def prompt_sites(model: nn.Module) -> PromptSites:
    """The sites of a transformers model. Raises `AdapterError` where there is no place for a prompt."""
    if not hasattr(model, "get_input_embeddings"):
        raise AdapterError("prompt methods need a transformers model, with an input embedding")
    paired = is_encoder_decoder(model)
    backbone = model.get_encoder() if paired else decoder_backbone(model)  # type: ignore[operator]
    check_memory_is_known(backbone)
    return PromptSites(
        backbone=backbone,
        embedding=(backbone if paired else model).get_input_embeddings(),  # type: ignore[operator]
        reader=model.get_decoder() if paired else None,  # type: ignore[operator]
        placeholder=_placeholder(model),
        # an encoder's rows are read by the decoder, which takes them with the prompt in front
        strips=not paired and not _pools_first_token(model, backbone),
        positions=_positions(model, backbone),
    )


def is_encoder_decoder(model: nn.Module) -> bool:
    """Whether an encoder and a decoder of its own make the model."""
    config: Any = getattr(model, "config", None)
    return bool(getattr(config, "is_encoder_decoder", False)) and model.get_encoder() is not model.get_decoder()  # type: ignore[operator]


def num_rows(model: nn.Module, num_virtual_tokens: int, shapes: Shapes | None) -> int:
    """Rows of the table: the reference gives an encoder-decoder base twice as many, unless its file has them once."""
    on_disk = (shapes or {}).get(PROMPT_KEY, (None,))[0]
    if not is_encoder_decoder(model) or on_disk == num_virtual_tokens:
        return num_virtual_tokens
    return 2 * num_virtual_tokens


def decoder_backbone(model: nn.Module) -> nn.Module:
    """The innermost module that holds both the input embedding and the blocks: it turns ids into hidden states."""
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    paths = [path for path, module in named_base_modules(model) if module is embedding]
    found = structure(model)
    # with towers: what joins them to the text is handed the plain mask
    paths += [*found.blocks, *found.towers]
    # the longest path that all of these begin with
    split = [path.split(".")[:-1] for path in paths]
    common = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return model.get_submodule(".".join(common))


def learned_positions(model: nn.Module) -> int | None:
    """Positions of the part that reads a row, where they are learned one by one; None where any row may be as long as
    it likes (rotary and relative positions)."""
    if not hasattr(model, "get_input_embeddings"):
        return None
    backbone = model.get_encoder() if is_encoder_decoder(model) else decoder_backbone(model)  # type: ignore[operator]
    return _positions(model, backbone).limit


def _placeholder(model: nn.Module) -> int:
    # 0 unless that is the padding, which some models count positions by
    config: Any = getattr(model, "config", None)
    return 1 if getattr(config, "pad_token_id", None) == 0 else 0


def _positions(model: nn.Module, backbone: nn.Module) -> Positions:
    idle = participation(model).idle
    # a tower for images has positions of its own
    unused = {id(module) for path, module in named_base_modules(model) if f"{path}.weight" in idle}
    tables = (m for path, m in backbone.named_modules() if id(m) not in unused and _is_position_table(path, m))
    table: Any = next(tables, None)
    padding = None if table is None else table.padding_idx
    first = 0 if padding is None else padding + 1
    return Positions(
        taken="position_ids" in forward_names(backbone),
        from_ids=padding is not None,
        first=first,
        # some tables leave their first rows unused (OPT, BART)
        limit=None if table is None else table.num_embeddings - first - int(table.__dict__.get("offset", 0)),
    )


def _is_position_table(path: str, module: nn.Module) -> bool:
    name = path.rsplit(".", 1)[-1]
    learned = "position" in name and "relative" not in name
    return isinstance(module, nn.Embedding) and (learned or name == "wpe")


def _is_causal(backbone: nn.Module) -> bool:
    return any(getattr(module, "is_causal", False) is True for module in backbone.modules())


def _pools_first_token(model: nn.Module, backbone: nn.Module) -> bool:
    """Bidirectional models judge a row by its first token, which is the prompt's, as in the reference."""
    return not _is_causal(backbone) and type(model).__name__.endswith(
        ("ForSequenceClassification", "ForMultipleChoice")
    )
