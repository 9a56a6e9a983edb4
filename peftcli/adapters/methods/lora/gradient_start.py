"""`init_lora_weights: lora_ga` (arXiv:2407.05000): the pair starts along the singular vectors of the first gradient.

G = dL/dW (out, in) over the first batches, G = U S V^T; A starts in V, B in U, so that the first step of B A follows the
step that full training would take. The start is part of the weight's shift: it is subtracted, the model starts as its
base. The stable size is out^(1/4) / sqrt(gamma) on either side.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

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
    # two sets of r directions must both fit, unless A and B start along the same ones
    narrow = [path for path, layer in layers if needed * layer.r > min(layer.lora_A.shape[1], layer.lora_B.shape[0])]
    if narrow:
        raise AdapterError(
            f"lora_ga with direction {details.direction} needs {needed} r singular vectors; {narrow[0]} has fewer",
            fix="a smaller r, or direction: ArBr",
        )
    for (_, layer), dense in zip(layers, _gradients(model, layers, context), strict=True):
        view = weight_view(unwrapped(layer))
        layer.start_from_pair(*_pair(dense, view.dense(), layer, details, context.generator))
        layer.finish_start()


def _gradients(model: nn.Module, layers: Sequence[tuple[str, LoraLinear]], context: InitContext) -> list[Tensor]:
    """Sum of the gradients of every adapted weight, (out, in) float32; the base keeps neither gradient nor flag."""
    if context.batches is None or context.loss is None:
        raise AdapterError(
            "init_lora_weights: lora_ga starts from gradients, and there is no data to compute them from",
            fix="train from a recipe, or pass `context=InitContext(generator, batches=..., loss=...)` to attach",
        )
    bases = [unwrapped(layer) for _, layer in layers]
    sums = [torch.zeros(weight_view(base).shape, device=weight_view(base).device) for base in bases]
    for _, layer in layers:
        # switched off: the gradient wanted is that of the base alone
        layer.enabled = False
    try:
        with _watched(bases) as gradients_of:
            for batch in context.batches():
                loss = run_batch(model, batch, context)
                assert loss is not None
                for total, gradient in zip(sums, gradients_of(loss), strict=True):
                    if gradient is not None:
                        total.add_(gradient)
    finally:
        for _, layer in layers:
            layer.enabled = True
    return sums


@contextlib.contextmanager
def _watched(bases: Sequence[nn.Module]) -> Iterator[Callable[[Tensor], list[Tensor | None]]]:
    """Inside the block a loss gives the gradient of each weight, (out, in): of plain ones by autograd itself, of packed
    ones, which can have none, as the sum of g x^T over what went in and what came back."""
    packed = [base for base in bases if weight_view(base).storage.is_packed]
    plain = [base.get_parameter("weight") for base in bases if base not in packed]
    products = {id(base): _Products(base) for base in packed}

    def gradients(loss: Tensor) -> list[Tensor | None]:
        pairs = [pair for product in products.values() for pair in product.pairs]
        # unused: an expert that no token was sent to has no gradient
        found = list(torch.autograd.grad(loss, [*plain, *(output for _, output in pairs)], allow_unused=True))
        of_plain = iter(found[: len(plain)])
        of_outputs = iter(found[len(plain) :])
        by_base = {key: product.taken(of_outputs) for key, product in products.items()}
        return [by_base[id(base)] if id(base) in by_base else _turned(base, next(of_plain)) for base in bases]

    for weight in plain:
        weight.requires_grad_(True)
    try:
        yield gradients
    finally:
        for weight in plain:
            weight.requires_grad_(False)
        for product in products.values():
            product.handle.remove()


def _turned(base: nn.Module, gradient: Tensor | None) -> Tensor | None:
    return gradient.T if gradient is not None and weight_view(base).transposed else gradient


class _Products:
    """Inputs and outputs of one packed layer in one forward pass."""

    def __init__(self, base: nn.Module) -> None:
        self.pairs: list[tuple[Tensor, Tensor]] = []
        self.handle = base.register_forward_hook(self._note)

    def _note(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        # a layer that no trained tensor comes before has an output without a graph
        traced = output if output.requires_grad else output.detach().requires_grad_(True)
        self.pairs.append((args[0].detach(), traced))
        return traced

    def taken(self, gradients: Iterator[Tensor | None]) -> Tensor | None:
        """Sum of g x^T over the pass, (out, in) float32; forgets the pass."""
        total: Tensor | None = None
        for inputs, _ in self.pairs:
            gradient = next(gradients)
            if gradient is not None:
                product = gradient.float().flatten(0, -2).T @ inputs.float().flatten(0, -2)
                total = product if total is None else total + product
        self.pairs.clear()
        return total


def _pair(
    gradient: Tensor, weight: Tensor, layer: LoraLinear, details: LoraGaConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    r = layer.r
    # four times the rank: the next r directions are needed as well, and the last of a randomised SVD are the least
    # exact
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
