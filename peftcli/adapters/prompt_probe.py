"""Whether a prefix fits the layers of a model: tried with two tokens, on the meta device before any weight is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, EncoderDecoderCache

from peftcli.adapters.prompt_sites import CacheSite
from peftcli.errors import AdapterError, PeftcliError
from peftcli.models.meta import without_values
from peftcli.models.spelling import give_cache

_FIX = "use prompt_tuning or lora"


class _NotingLayer(DynamicLayer):  # type: ignore[misc]
    """Notes the shapes of the keys and values that a layer of the model hands over, and keeps nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: tuple[torch.Size, torch.Size] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.noted = key_states.shape, value_states.shape
        return key_states, value_states


def check_layers(site: CacheSite) -> None:
    """Raises `AdapterError` where a layer keeps something else than keys and values of one shape for all layers.

    Where a pass on the meta device needs values (a choice of experts), only the layers before that point are seen.
    """
    layers = [_NotingLayer() for _ in range(site.num_layers)]
    failure = _try_out(site, layers)
    for index, layer in enumerate(layers):
        if layer.noted is not None:
            _check_shapes(site, index, *layer.noted)
    if failure is None:
        silent = [index for index in _own_layers(site) if layers[index].noted is None]
    # experts are chosen by values, which the meta device has none of
    elif _on_meta(site) and isinstance(failure, RuntimeError):
        return
    else:
        silent = [index for index, layer in enumerate(layers) if layer.noted is None]
    if silent or failure is not None:
        raise AdapterError(
            f"prefix tuning needs keys and values in every layer, and {type(site.backbone).__name__} keeps something "
            f"else, such as a state, in layer {silent[0] if silent else 0}",
            fix=_FIX,
        ) from failure


def _check_shapes(site: CacheSite, index: int, keys: torch.Size, values: torch.Size) -> None:
    wanted = [site.num_heads, site.head_dim]
    found = [[shape[1], shape[3]] for shape in (keys, values)]
    if found != [wanted, wanted]:
        raise AdapterError(
            f"layer {index} keeps keys of {found[0]} and values of {found[1]} (heads, width), "
            f"a prefix of this configuration has {wanted}",
            fix=f"prefix tuning needs plain attention that is alike in all layers; {_FIX}",
        )


def _own_layers(site: CacheSite) -> Iterator[int]:
    """Layers that keep keys of their own; some read those of an earlier one (Gemma 3n, Gemma 4)."""
    kept = DynamicCache(config=site.backbone.config).layers or [DynamicLayer()] * site.num_layers
    for index, layer in enumerate(kept[: site.num_layers]):
        if hasattr(layer, "get_seq_length") or hasattr(layer, "has_previous_state"):
            yield index


def _on_meta(site: CacheSite) -> bool:
    return next(site.backbone.parameters()).device.type == "meta"


def _try_out(site: CacheSite, layers: list[_NotingLayer]) -> Exception | None:
    """Runs two tokens through the backbone; what it failed with, None where it ran through."""
    weight = next(parameter for parameter in site.backbone.parameters() if parameter.is_floating_point())
    cache: Cache = Cache(layers=layers)
    # two tokens: one alone could pass as a step of generation
    inputs: dict[str, Any] = {"input_ids": torch.full((1, 2), 3, device=weight.device), "use_cache": site.keeps_cache}
    if site.reads_encoder:
        cache = EncoderDecoderCache(cache, DynamicCache())
        config: Any = site.backbone.config
        inputs["encoder_hidden_states"] = weight.new_zeros(1, 2, config.d_model)
    give_cache(site.backbone, inputs, cache)
    try:
        with evaluating(site.backbone), without_values():
            site.backbone(**inputs)
    except PeftcliError:
        raise
    # whatever a foreign forward pass raises when it misses what it keeps
    except Exception as error:
        return error
    return None


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients inside; each module's own mode afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        # weights that autocast cast without gradients: torch before 2.11 would hand the same copies to a training pass
        torch.clear_autocast_cache()
        for module in training:
            module.training = True
