"""A quantized model with plain weights: each packed layer becomes a linear layer that holds what it dequantizes to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from peftcli.models.storage import logical_numel, packed_modules, storage_of, was_transposed
from peftcli.models.weights import is_linear, weight_view

_MARKS = ("hf_quantizer", "quantization_method", "is_quantized", "is_loaded_in_4bit", "is_loaded_in_8bit")
"""What transformers leaves on a model that it has loaded quantized, beside `quantization_config` of its configuration."""
_CONVERSIONS = "_weight_conversions"
"""Where transformers keeps how the names and tensors of the files became the model's, to save it the same way."""


def dequantized_layer(module: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """A plain linear layer with the values of a packed one, frozen, in `dtype` (default: the layer's compute type), of
    the kind that the packed one stands for."""
    view = weight_view(module)
    dtype = dtype or view.dtype
    rows, columns = view.shape
    bias = None if view.bias is None else view.bias.detach().to(dtype)
    plain: nn.Module
    if was_transposed(module):
        plain = Conv1D(rows, columns)
        # Conv1D always has a bias
        bias = view.dense().new_zeros(rows, dtype=dtype) if bias is None else bias
    else:
        # on the meta device: its own start values would be drawn, and thrown away
        plain = nn.Linear(columns, rows, bias=bias is not None, device="meta")
    plain.register_parameter("weight", _frozen(weight_view(plain).stored(view.dense(dtype))))
    if bias is not None:
        plain.register_parameter("bias", _frozen(bias))
    return plain.train(module.training)


def _frozen(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.contiguous(), requires_grad=False)


def dequantize(model: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Puts plain layers in the place of packed ones, in place and under wrappers too; nothing else changes its type.

    Layer by layer: beside the model one layer is held twice.
    """
    plain: dict[int, nn.Module] = {}
    packed = {id(module) for _, module in packed_modules(model) if is_linear(module)}
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is None or id(child) not in packed:
                continue
            # a layer that stands at two places is one layer again
            if id(child) not in plain:
                plain[id(child)] = dequantized_layer(child, dtype)
            parent._modules[name] = plain[id(child)]
    if plain:
        _forget_quantization(model)


def _forget_quantization(model: Any) -> None:
    for config in {id(found): found for found in _configs(model)}.values():
        for name in ("quantization_config", "_is_quantized"):
            vars(config).pop(name, None)
    for module in model.modules():
        for name in _MARKS:
            vars(module).pop(name, None)
    # how packed tensors were read has no way back, and is none of a plain model's names
    if (conversions := vars(model).get(_CONVERSIONS)) is not None:
        setattr(model, _CONVERSIONS, [found for found in conversions if _has_a_way_back(found)])


def _has_a_way_back(conversion: Any) -> bool:
    try:
        return all(operation.reverse_op is not None for operation in getattr(conversion, "operations", ()))
    except NotImplementedError:
        return False


def _configs(model: Any) -> list[Any]:
    config = getattr(model, "config", None)
    if config is None:
        return []
    return [config, config.get_text_config()] if hasattr(config, "get_text_config") else [config]


def is_quantized(model: nn.Module) -> bool:
    """Whether any layer of a model is packed in a storage that is read here."""
    return next(packed_modules(model), None) is not None


def storage_name(model: nn.Module) -> str | None:
    """The name of the storage of most packed weights; None for a plain model."""
    counts: dict[str, int] = {}
    for _, module in packed_modules(model):
        rows, columns = storage_of(module).shape(module)
        counts[storage_of(module).name] = counts.get(storage_of(module).name, 0) + rows * columns
    return max(counts, key=lambda name: counts[name], default=None)


def packed_share(model: nn.Module) -> float:
    """Share of a model's weights that are packed, shared ones counted once."""
    sizes: dict[int, tuple[int, bool]] = {}
    for module in model.modules():
        packed = storage_of(module).is_packed
        for name, parameter in module.named_parameters(recurse=False):
            sizes[id(parameter)] = (logical_numel(module, name, parameter), packed and name == "weight")
    total = sum(count for count, _ in sizes.values())
    return sum(count for count, packed in sizes.values() if packed) / max(1, total)
