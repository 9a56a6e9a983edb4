"""Prompts that are keys and values in front of every self-attention, as if the model had read something before.

    cache kept              each of its layers first receives [prefix; keys of the tokens]: generation, beams and all,
                            then goes on as after a long prompt
    no cache kept           a cache that stands in front of each layer's keys and values and stores nothing
    checkpointed layers     drop the cache they are given: each attention is handed that same standing cache again

In rows padded on the left, the prefix stands after the padding (`adapters.prompt_placement`).
Real tokens have positions after the prefix; keys of the prefix are used as they are, without rotation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, EncoderDecoderCache

from peftcli.adapters.prompt_config import PromptConfig
from peftcli.adapters.prompt_inputs import Arguments, entering, lengthen_mask, positions_of, shift_positions
from peftcli.adapters.prompt_placement import Placement, placement
from peftcli.adapters.prompt_probe import evaluating
from peftcli.adapters.prompt_sites import CacheSite
from peftcli.adapters.prompts import PromptAdapter
from peftcli.errors import AdapterError
from peftcli.models.spelling import (
    cache_name,
    give_cache,
    goes_on,
    named_arguments,
    read_before,
    shift_cache_position,
    tokens_before,
)

KeysValues = tuple[Tensor, Tensor]
"""Of one layer: (heads, n, head_dim) each."""
_STANDING = "_peftcli_standing"
_OTHER_STATES = ("key_value_states", "encoder_hidden_states")


class PrefixedLayer(DynamicLayer):  # type: ignore[misc]
    """A layer of a cache that gives [prefix; keys of the tokens], each at its place, and hands both to `kept`.

    With nothing kept, a layer may run twice.
    """

    def __init__(self, keys: Tensor, values: Tensor, place: Placement, kept: Any = None) -> None:
        super().__init__()
        # masks are made for as many keys as these and the tokens
        # one row for the batch, which models read the length from
        self.keys, self.values = keys[None], values[None]
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        self.place = place
        self.kept = kept

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> KeysValues:
        """Keys and values with the prefix in its place; both are handed on where something is kept."""
        keys, values = self._joined(self.keys, key_states), self._joined(self.values, value_states)
        # what is kept has the prefix in it, so that later calls find it in front
        if self.kept is not None:
            self.kept.update(keys, values, *args, **kwargs)
        return keys, values

    def _joined(self, prefix: Tensor, states: Tensor) -> Tensor:
        batch, heads, _, width = states.shape
        if prefix.shape[1] != heads or prefix.shape[3] != width:
            raise AdapterError(
                f"the prefix has {prefix.shape[1]} heads of {prefix.shape[3]}, this attention {heads} of {width}",
                fix="prefix tuning needs layers that are all alike; use prompt_tuning here",
            )
        # expanded, not copied: the prefix is one for all rows
        return self.place.placed(torch.cat([prefix.to(states).expand(batch, -1, -1, -1), states], dim=-2), dim=2)


class PrefixAdapter(PromptAdapter):
    """Keys and values in front of every self-attention of the decoder, or of an encoder that stands alone."""

    def __init__(self, model: nn.Module, config: PromptConfig, site: CacheSite) -> None:
        super().__init__(model, config, config.num_virtual_tokens)
        self.site = site
        self._standing: Cache | None = None
        self._withheld: Cache | None = None
        self._filling: Cache | None = None

    def hook(self) -> Iterable[RemovableHandle]:
        yield self.site.backbone.register_forward_pre_hook(self.extend, with_kwargs=True)
        yield self.site.backbone.register_forward_hook(self.strip)
        # also after a forward pass that failed, so that a cache of the caller is left in order
        yield self.site.backbone.register_forward_hook(self.release, always_call=True)
        for attention in self_attentions(self.site.backbone):
            yield attention.register_forward_pre_hook(self.restore, with_kwargs=True)

    def layers(self) -> list[KeysValues]:
        """Keys and values by layer, cut out of the prompt (n, 2 x layers x heads x head_dim)."""
        site, rows = self.site, self.prompt()
        # from (n, slots, heads, width) to slots of (heads, n, width), as a cache holds them
        slots = rows.view(len(rows), 2 * site.num_layers, site.num_heads, site.head_dim).permute(1, 2, 0, 3)
        return [(slots[slot], slots[slot + 1]) for slot in map(site.slot, range(site.num_layers))]

    def extend(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        """Forward pre-hook of the backbone: a cache that holds the prefix, mask and positions to match."""
        if not self.enabled:
            return None
        inputs = named_arguments(module, args, kwargs)
        self._withheld = self._standing = None
        begins = not goes_on(inputs)
        if not self.counts_as_tokens:
            self._state_positions(inputs, tokens_before(inputs))
        place = placement(inputs.get("attention_mask"), self.total_rows)
        if begins:
            self.site.positions.check_room(self.added_positions(), entering(inputs).shape[1])
            self._insert(inputs, place)
        mask = lengthen_mask(inputs, place)
        shift_cache_position(inputs, self.total_rows, entering=False)
        if self.counts_as_tokens:
            shift_positions(inputs, mask, self.total_rows, self.site.positions)
        return (), inputs

    @property
    def counts_as_tokens(self) -> bool:
        """Whether the input's positions begin after the prefix, as if that were text."""
        return True

    def added_positions(self) -> int:
        """How many positions the prefix takes from the model's own."""
        return self.total_rows if self.counts_as_tokens else 0

    def _state_positions(self, inputs: dict[str, Any], cached: int) -> None:
        """Gives the positions that tokens have without a prefix; a model would count those that its cache holds."""
        if inputs.get("position_ids") is not None:
            return
        tokens, mask = entering(inputs), inputs.get("attention_mask")
        if mask is None:
            # what is in the cache holds the prefix, which these positions do not count
            length = max(0, cached - self.total_rows) + tokens.shape[1]
            mask = torch.ones(tokens.shape[0], length, dtype=torch.long, device=tokens.device)
        inputs["position_ids"] = positions_of(mask)[:, -tokens.shape[1] :] + self.site.positions.first

    def _insert(self, inputs: dict[str, Any], place: Placement) -> None:
        layers, cache = self.layers(), read_before(inputs)
        # made at every call: the prefix is trained between them
        self._standing = Cache(layers=[PrefixedLayer(*layer, place) for layer in layers])
        if cache is None and self.site.keeps_cache and self._cache_wanted(inputs):
            cache = self._empty_cache()
        if cache is None:
            cache = EncoderDecoderCache(self._standing, DynamicCache()) if self.site.reads_encoder else self._standing
            self._withheld = cache
        else:
            self._fill(cache, layers, place)
        give_cache(self.site.backbone, inputs, cache)

    def _cache_wanted(self, inputs: dict[str, Any]) -> bool:
        wanted = inputs.get("use_cache")
        return bool(getattr(self.site.backbone.config, "use_cache", False) if wanted is None else wanted)

    def _empty_cache(self) -> Cache:
        config = self.site.backbone.config
        if self.site.reads_encoder:
            return EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config))
        return DynamicCache(config=config)

    def _fill(self, cache: Any, layers: list[KeysValues], place: Placement) -> None:
        """Sets a layer with the prefix before each layer of an empty cache, until the forward pass is over."""
        own = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
        if not isinstance(own, Cache):
            raise AdapterError(
                f"prefix tuning does not support {type(own).__name__}", fix="generate with the default (dynamic) cache"
            )
        # layers that the cache makes as they come are made now, to be wrapped
        kept = [*own.layers, *(DynamicLayer() for _ in layers[len(own.layers) :])]
        prefixed = [PrefixedLayer(*layer, place, under) for layer, under in zip(layers, kept, strict=False)]
        own.layers = [*prefixed, *kept[len(layers) :]]
        self._filling = own

    def release(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Forward hook of the backbone: the cache is as before, but filled."""
        if self._filling is not None:
            self._filling.layers = [
                layer.kept if isinstance(layer, PrefixedLayer) else layer for layer in self._filling.layers
            ]
            self._filling = None

    def restore(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        """Forward pre-hook of an attention: the standing cache, where a checkpointed layer took the cache away."""
        if not self.enabled or self._standing is None:
            return None
        inputs = named_arguments(module, args, kwargs)
        if read_before(inputs) is not None or any(inputs.get(other) is not None for other in _OTHER_STATES):
            return None
        give_cache(module, inputs, self._standing_of(inputs.get("attention_mask")))
        return (), inputs

    def _standing_of(self, mask: Any) -> Cache | None:
        """The standing cache of the forward pass that made this mask: a layer may run again when others came between."""
        if not isinstance(mask, Tensor):
            return self._standing
        # kept with the mask, which a checkpoint hands to the layer again; the adapter may hold another pass's by then
        found: Cache = mask.__dict__.setdefault(_STANDING, self._standing)
        return found

    def strip(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Forward hook of the backbone: a cache that the caller did not ask for does not come out."""
        if not self.enabled or self._withheld is None:
            return None
        withheld, self._withheld = self._withheld, None
        if isinstance(output, tuple):
            return tuple(part for part in output if part is not withheld)
        for name in [name for name, part in output.items() if part is withheld]:
            output[name] = None
        return output


def self_attentions(backbone: nn.Module) -> Iterator[nn.Module]:
    """The innermost modules that are handed a cache. Cross-attentions are among them, told apart at each call."""
    found = [(path, module) for path, module in backbone.named_modules() if path and cache_name(module) is not None]
    for path, module in found:
        if not any(other.startswith(f"{path}.") for other, _ in found):
            yield module


def recorded_layers(model: nn.Module, site: CacheSite, ids: Tensor) -> list[KeysValues]:
    """Keys and values that the base computes for token ids (n,), by layer; what `ids` stand for when used as a prefix."""
    cache = DynamicCache()
    ids = ids.to(next(model.parameters()).device)[None]
    with evaluating(model):
        if site.reads_encoder:
            inputs = {"input_ids": ids, "decoder_input_ids": ids, "use_cache": True}
            give_cache(model, inputs, EncoderDecoderCache(cache, DynamicCache()))
            model(**inputs)
        else:
            inputs = {"input_ids": ids, "use_cache": site.keeps_cache}
            give_cache(site.backbone, inputs, cache)
            site.backbone(**inputs)
    return [(layer.keys[0].float(), layer.values[0].float()) for layer in cache.layers]
