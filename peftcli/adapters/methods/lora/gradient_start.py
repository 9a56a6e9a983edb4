"""`init_lora_weights: lora_ga` (arXiv:2407.05000): the pair starts along the singular vectors of the first gradient.

G = dL/dW (out, in) over the first batches, G = U S V^T; A starts in V, B in U, so that the first step of B A follows the
step that full training would take. The start is part of the weight's shift: it is subtracted, the model starts as its
base. The stable size is out^(1/4) / sqrt(gamma) on either side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from peftcli.adapters.base import InitContext
from peftcli.adapters.layers import unwrapped
from peftcli.adapters.methods.lora.config import LoraConfig, LoraGaConfig
from peftcli.adapters.methods.lora.eva import run_batch
from peftcli.adapters.methods.lora.inits import randomised_svd
from peftcli.adapters.methods.lora.linear import LoraLinear
from peftcli.errors import AdapterError
from peftcli.models.weights import weight_view

ITERATIONS = 4


def start_from_gradients(
    model: nn.Module, layers: Sequence[tuple[str, LoraLinear]], config: LoraConfig, context: InitContext
) -> None:
    """Fills the pair and the frozen start of every layer. Raises `AdapterError` without data, or where r is too large."""
    details = config.lora_ga_config or LoraGaConfig()
    needed = 1 if details.direction == "ArBr" else 2
    narrow = [path for path, layer in layers if needed * layer.r > min(layer.lora_A.shape[1], layer.lora_B.shape[0])]
    if narrow:
        raise AdapterError(
            f"lora_ga with direction {details.direction} needs {needed} r singular vectors; {narrow[0]} has fewer",
            fix="a smaller r, or direction: ArBr",
        )
    for (_, layer), gradient in zip(layers, _gradients(model, layers, context), strict=True):
        view = weight_view(unwrapped(layer))
        dense = gradient.T if view.transposed else gradient
        layer.start_from_pair(*_pair(dense.float(), view.dense(), layer, details, context.generator))
        layer.finish_start()


def _gradients(model: nn.Module, layers: Sequence[tuple[str, LoraLinear]], context: InitContext) -> list[Tensor]:
    """Mean gradient of every adapted weight, in its stored layout; the base keeps neither gradient nor flag."""
    if context.batches is None or context.loss is None:
        raise AdapterError(
            "init_lora_weights: lora_ga starts from gradients, and there is no data to compute them from",
            fix="train from a recipe, or pass `context=InitContext(generator, batches=..., loss=...)` to attach",
        )
    weights = [unwrapped(layer).get_parameter("weight") for _, layer in layers]
    sums = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
    for weight in weights:
        weight.requires_grad_(True)
    for _, layer in layers:
        layer.enabled = False
    try:
        for batch in context.batches():
            loss = run_batch(model, batch, context)
            assert loss is not None
            found = torch.autograd.grad(loss, weights, allow_unused=True)
            for total, gradient in zip(sums, found, strict=True):
                if gradient is not None:
                    total.add_(gradient)
    finally:
        for weight in weights:
            weight.requires_grad_(False)
        for _, layer in layers:
            layer.enabled = True
    return sums


def _pair(
    gradient: Tensor, weight: Tensor, layer: LoraLinear, details: LoraGaConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    r = layer.r
    u, _, vt = randomised_svd(gradient, min(4 * r, *gradient.shape), ITERATIONS, generator)
    first, second = slice(0, r), slice(r, 2 * r)
    lora_a = vt[second if details.direction == "A2rBr" else first]
    lora_b = u[:, second if details.direction == "ArB2r" else first]
    size = _size(gradient, weight, layer, details)
    return lora_a * size, lora_b * size


def _size(gradient: Tensor, weight: Tensor, layer: LoraLinear, details: LoraGaConfig) -> float:
    if details.scale == "stable":
        return float(gradient.shape[0] ** 0.25 / details.stable_gamma**0.5)
    if details.scale == "gd_scale":
        return 1.0 / layer.scaling
    if details.scale == "weight_svd":
        singular = torch.linalg.svdvals(weight)[: layer.r]
        return float((singular / layer.scaling).sqrt().mean())
    return 1.0
