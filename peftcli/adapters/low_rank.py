"""Any merged update as LoRA: what each weight has changed by, cut into low-rank pairs.

    W_new - W_old = U S V^T  ->  B = U_k sqrt(S_k), A = sqrt(S_k) V_k^T        (Eckart and Young, 1936: the nearest)

Linear layers and embeddings become pairs of scale one. Changed biases of linear layers become biases of B. What else has
changed (norms) is kept whole, as `modules_to_save`, so that nothing but the cut is lost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from peftcli.adapters.base_modules import named_base_modules
from peftcli.adapters.pairs import Pairs
from peftcli.adapters.registry import method, method_of_pairs
from peftcli.errors import AdapterError
from peftcli.models.new_heads import new_head_keys
from peftcli.models.structure import embeddings_are_tied, output_embedding
from peftcli.models.weights import is_linear, weight_view

ALLOWED_ERROR = 0.01
"""Largest relative error of a layer where no rank is asked for."""
_ROUNDING = 1e-6
"""Singular values below this share of the largest are rounding."""

Values = Mapping[str, Tensor]
"""Full name -> value, tensors that modules share under each of their names."""


@dataclass(frozen=True)
class LayerCut:
    """One layer's update and what is left out of it. Norms are Frobenius norms."""

    layer: str
    rank: int
    norm: float
    error: float
    """Norm of what is left out."""

    @property
    def relative_error(self) -> float:
        """What is left out, as a share of the update's norm; 0 for an update that is zero."""
        return self.error / self.norm if self.norm else 0.0


@dataclass
class LowRank:
    """A LoRA section as in a recipe, its tensors by file key, and the error of each layer."""

    section: dict[str, Any]
    tensors: dict[str, Tensor]
    cuts: list[LayerCut]
    kept_whole: list[str] = field(default_factory=list)

    @property
    def relative_error(self) -> float:
        """Of all updates together."""
        norm = math.sqrt(sum(cut.norm**2 for cut in self.cuts))
        return math.sqrt(sum(cut.error**2 for cut in self.cuts)) / norm if norm else 0.0


def values_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of every parameter of a plain model, by full name; a shared one is copied once."""
    copies: dict[int, Tensor] = {}
    found = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) not in copies:
            copies[id(parameter)] = parameter.detach().clone()
        found[name] = copies[id(parameter)]
    return found


def as_low_rank(model: nn.Module, before: Values, *, r: int | None, tied_before: bool) -> LowRank:
    """The change of a merged, plain model since `before`, as LoRA of rank `r` (default: the smallest whose error stays
    below `ALLOWED_ERROR` in each layer). Raises `AdapterError` where LoRA has no form for a change."""
    modules = dict(named_base_modules(model))
    # tied before and after the merge, else the two tables have parted
    tied = tied_before and embeddings_are_tied(model)
    # a tied head is written with the embedding, not once more
    head = output_embedding(model) if tied else None
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    biases: dict[str, Tensor] = {}
    cuts, whole = [], []
    # a head that the base's files do not hold is another one each time: a change of it says nothing
    drawn = set(new_head_keys(model))
    for path, module in modules.items():
        changed = _changes(path, module, before)
        if not changed or module is head:
            continue
        is_drawn = any(f"{path}.{name}" in drawn for name in changed)
        if is_drawn or not (isinstance(module, nn.Embedding) or is_linear(module)):
            _check_whole(path, changed)
            whole.append(path)
            continue
        # a layer whose bias alone changed has a pair of rank one, of zeros
        update = changed.get("weight", torch.zeros_like(next(iter(module.parameters()))))
        pairs[path], cut = _cut(path, module, update, r)
        cuts.append(cut)
        if "bias" in changed:
            biases[path] = changed["bias"]
    if not pairs:
        raise AdapterError("the adapter changes no linear layer: LoRA has no form for it", fix="keep it as it is")
    found = Pairs(pairs, biases, tuple(whole), tied=tied and head is not None)
    section, tensors = method(method_of_pairs()).of_pairs(model, found)
    return LowRank(section, tensors, cuts, whole)


def _changes(path: str, module: nn.Module, before: Values) -> dict[str, Tensor]:
    """Parameter name -> float32 change, of those that have changed."""
    found = {}
    for name, parameter in module.named_parameters(recurse=False):
        full = f"{path}.{name}" if path else name
        if full not in before:
            raise AdapterError(f"merging added `{full}` to the base, which LoRA cannot do")
        change = parameter.detach().float() - before[full].float()
        if bool(change.any()):
            found[name] = change
    return found


def _check_whole(path: str, changed: Mapping[str, Tensor]) -> None:
    fused = [name for name, change in changed.items() if change.dim() > 2]
    if fused:
        raise AdapterError(
            f"`{path}.{fused[0]}` is a fused weight, which is not converted", fix="keep the adapter as it is"
        )


def _cut(path: str, module: nn.Module, update: Tensor, r: int | None) -> tuple[tuple[Tensor, Tensor], LayerCut]:
    # an embedding's table is (rows, width), its pair maps ids to width
    dense = update.T if isinstance(module, nn.Embedding) or weight_view(module).transposed else update
    u, values, v = torch.linalg.svd(dense.float(), full_matrices=False)
    rank = _rank(values, r)
    # the root on both sides: factors of like size are rounded alike in half precision
    root = values[:rank].sqrt()
    pair = (root[:, None] * v[:rank], u[:, :rank] * root)
    error = float((dense - pair[1] @ pair[0]).norm())
    return pair, LayerCut(path, rank, float(dense.norm()), error)


def _rank(values: Tensor, r: int | None) -> int:
    """How many singular values to keep; at least one."""
    real = int((values > _ROUNDING * values[0]).sum())
    if r is None:
        # norm of everything from the k-th on, for each k
        left = values.square().flip(0).cumsum(0).flip(0).sqrt()
        r = int((left > ALLOWED_ERROR * left[0]).sum())
    return max(1, min(r, real))
