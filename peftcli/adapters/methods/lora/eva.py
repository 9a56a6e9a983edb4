"""`init_lora_weights: eva` (arXiv:2410.07170): A starts at the directions in which a layer's inputs vary most.

An incremental SVD of the inputs X (tokens, in) of each layer keeps more right singular vectors than can be used. With
rho above 1, ranks then go to the layers whose components explain most: the sum of ranks is unchanged, every layer keeps
one at least. B starts at zero, so the model starts as its base.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from peftcli.adapters.base import InitContext
from peftcli.adapters.methods.lora.config import EvaConfig, LoraConfig
from peftcli.adapters.methods.lora.linear import LoraLinear
from peftcli.errors import AdapterError

OVERSAMPLING = 2
"""How many times as many directions as can be used are followed, since what is cut off in between is lost."""


@dataclass
class Components:
    """The leading right singular vectors of everything that one layer has seen."""

    limit: int
    values: Tensor | None = None  # (k,), descending
    vectors: Tensor | None = None  # (k, in)
    energy: float = 0.0
    settled: bool = False

    def update(self, x: Tensor, *, watched: int, tau: float) -> None:
        """Takes rows (tokens, in); settled once the first `watched` directions no longer turn."""
        if x.shape[0] == 0:
            return
        self.energy += float(x.square().sum())
        # what was seen before is one row for each direction, scaled by its singular value: the SVD of both together
        rows = x if self.values is None or self.vectors is None else torch.cat([self.values[:, None] * self.vectors, x])
        _, values, vectors = torch.linalg.svd(rows, full_matrices=False)
        values, vectors = values[: self.limit], vectors[: self.limit]
        if self.vectors is not None and self.vectors.shape == vectors.shape:
            # the sign of a singular vector is arbitrary
            turned = (self.vectors[:watched] * vectors[:watched]).sum(1).abs()
            self.settled = bool((turned > tau).all())
        self.values, self.vectors = values, vectors


def start_from_activations(
    model: nn.Module, layers: Sequence[tuple[str, LoraLinear]], config: LoraConfig, context: InitContext
) -> dict[str, Any]:
    """Fills A of every layer, changes ranks, and returns the configuration's new `rank_pattern`, `alpha_pattern`.

    Raises `AdapterError` where there is no data to look at.
    """
    eva = config.eva_config or EvaConfig()
    found = _components(model, layers, eva, context)
    changes = take_ranks(layers, _redistributed(layers, found, eva), config)
    for path, layer in layers:
        values, vectors = found[path].values, found[path].vectors
        assert values is not None
        assert vectors is not None
        with torch.no_grad():
            start = vectors[: layer.r]
            # clamped: a direction that no input had has a value of zero
            layer.lora_A.copy_(start / values[: layer.r, None].clamp_min(1e-12) if eva.whiten else start)
            layer.lora_B.zero_()
            layer.finish_start()
    return changes


def take_ranks(
    layers: Sequence[tuple[str, LoraLinear]], ranks: Mapping[str, int], config: LoraConfig
) -> dict[str, Any]:
    """Gives layers other ranks, without values, and returns the configuration's new `rank_pattern`, `alpha_pattern`."""
    eva = config.eva_config or EvaConfig()
    rank_pattern, alpha_pattern = dict(config.rank_pattern), dict(config.alpha_pattern)
    for path, layer in layers:
        r, scaling = ranks[path], layer.scaling
        if r == layer.r:
            continue
        if eva.adjust_scaling_factors:
            # the scale stays, so alpha is what gives it at the new rank; first in the pattern, for the first match
            # counts
            alpha_pattern = {path: scaling * _divisor(config, r), **alpha_pattern}
        else:
            scaling = scaling * _divisor(config, layer.r) / _divisor(config, r)
        rank_pattern = {path: r, **rank_pattern}
        layer.resize(r, scaling)
    return {"rank_pattern": rank_pattern, "alpha_pattern": alpha_pattern}


def _divisor(config: LoraConfig, r: int) -> float:
    return math.sqrt(r) if config.use_rslora else float(r)


def _components(
    model: nn.Module, layers: Sequence[tuple[str, LoraLinear]], eva: EvaConfig, context: InitContext
) -> dict[str, Components]:
    found = {
        # never more directions than the layer has inputs
        path: Components(min(OVERSAMPLING * math.ceil(eva.rho * layer.r), layer.lora_A.shape[1]))
        for path, layer in layers
    }
    if context.batches is None:
        raise AdapterError(
            "init_lora_weights: eva starts from the layers' inputs, and there is no data to read them from",
            fix="train from a recipe, or pass `context=InitContext(generator, batches=...)` to attach",
        )
    for batch in context.batches():
        with _observed(layers, found, eva, _mask(batch, eva)), torch.no_grad():
            run_batch(model, batch, context)
        # batches are dear, and once nothing turns any more they tell nothing
        if all(components.settled for components in found.values()):
            break
    empty = [path for path, components in found.items() if components.values is None]
    if empty:
        raise AdapterError(f"init_lora_weights: eva saw no input of {', '.join(empty[:3])}", fix="leave these out")
    return found


def run_batch(model: nn.Module, batch: dict[str, Tensor], context: InitContext) -> Tensor | None:
    """One forward pass in evaluation mode; the loss where the context has one."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        if context.loss is not None:
            return context.loss(model, batch)
        model(**{name: batch[name] for name in ("input_ids", "attention_mask") if name in batch})
        return None
    finally:
        for module, mode in modes.items():
            module.training = mode


def _mask(batch: dict[str, Tensor], eva: EvaConfig) -> Tensor | None:
    """Which positions (batch, tokens) are looked at, None for all."""
    if eva.use_label_mask and "weights" in batch:
        return batch["weights"] > 0
    if eva.use_label_mask and "labels" in batch and batch["labels"].dim() == 2:
        return batch["labels"] != eva.label_mask_value
    return batch["attention_mask"].bool() if "attention_mask" in batch else None


@contextlib.contextmanager
def _observed(
    layers: Sequence[tuple[str, LoraLinear]], found: dict[str, Components], eva: EvaConfig, mask: Tensor | None
) -> Iterator[None]:
    """Inside the block every layer's input is taken up. Layers that share one input share its SVD."""
    last: list[tuple[Tensor, Components]] = []

    def observe(path: str, layer: LoraLinear, x: Tensor) -> None:
        components = found[path]
        # queries, keys and values read the very same tensor: one SVD serves all three
        if last and last[0][0] is x and last[0][1].limit == components.limit:
            twin = last[0][1]
            components.values, components.vectors = twin.values, twin.vectors
            components.energy, components.settled = twin.energy, twin.settled
            return
        if not components.settled:
            rows = x[mask] if mask is not None and x.shape[:-1] == mask.shape else x.flatten(0, -2)
            components.update(rows.detach().float(), watched=layer.r, tau=eva.tau)
        last[:] = [(x, components)]

    handles = [
        layer.register_forward_pre_hook(lambda module, args, path=path: observe(path, module, args[0]))
        for path, layer in layers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _redistributed(
    layers: Sequence[tuple[str, LoraLinear]], found: dict[str, Components], eva: EvaConfig
) -> dict[str, int]:
    """Rank of each layer: the components that explain most of their layer's inputs, as many as there were ranks."""
    shares: list[tuple[float, int, str]] = []
    for path, layer in layers:
        components = found[path]
        assert components.values is not None
        # nor more than the layer has outputs, above which a rank adds nothing
        allowed = min(len(components.values), math.ceil(eva.rho * layer.r), layer.lora_B.shape[0])
        squares = components.values[:allowed].square() / max(components.energy, 1e-30)
        shares += [(float(share), -index, path) for index, share in enumerate(squares)]
    # every layer's first component before all others, so that each keeps one
    firsts = [share for share in shares if share[1] == 0]
    others = sorted((share for share in shares if share[1] < 0), reverse=True)
    budget = sum(layer.r for _, layer in layers)
    ranks = dict.fromkeys((path for path, _ in layers), 0)
    for _, _, path in (firsts + others)[:budget]:
        ranks[path] += 1
    return ranks
