"""Any merged update as LoRA: what each weight has changed by, cut into low-rank pairs.

    W_new - W_old = U S V^T  ->  B = U_k sqrt(S_k), A = sqrt(S_k) V_k^T        (Eckart and Young, 1936: the nearest)

Linear layers and embeddings become pairs of scale one. Changed biases of linear layers become biases of B. What else has
changed (norms) is kept whole, as `modules_to_save`, so that nothing but the cut is lost.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from peftcli.adapters.base import FILE_PREFIX
from peftcli.adapters.layers import named_base_modules
from peftcli.errors import AdapterError
from peftcli.models.load import new_head_keys
from peftcli.models.structure import embeddings_are_tied, input_embedding, output_embedding
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
    tied = tied_before and embeddings_are_tied(model)
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
        update = changed.get("weight", torch.zeros_like(next(iter(module.parameters()))))
        pairs[path], cut = _cut(path, module, update, r)
        cuts.append(cut)
        if "bias" in changed:
            biases[path] = changed["bias"]
    if not pairs:
        raise AdapterError("the adapter changes no linear layer: LoRA has no form for it", fix="keep it as it is")
    section = _section({path: len(a) for path, (a, _) in pairs.items()}, whole, bool(biases), tied and head is not None)
    return LowRank(section, _tensors(model, modules, pairs, biases, whole, section), cuts, whole)


def _changes(path: str, module: nn.Module, before: Values) -> dict[str, Tensor]:
    """Parameter name -> float32 change, of those that have changed."""
    found = {}
    for name, parameter in module.named_parameters(recurse=False):
        full = f"{path}.{name}" if path else name
        if full not in before:
            raise AdapterError(f"merging added `{full}` to the base, which LoRA cannot")
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


def _section(ranks: Mapping[str, int], whole: list[str], has_biases: bool, tied: bool) -> dict[str, Any]:
    usual = Counter(ranks.values()).most_common(1)[0][0]
    others = {path: rank for path, rank in ranks.items() if rank != usual}
    return {
        "type": "lora",
        "r": usual,
        "lora_alpha": usual,
        "target_modules": sorted(ranks),
        "rank_pattern": others,
        "alpha_pattern": dict(others),
        "lora_bias": has_biases,
        "modules_to_save": whole or None,
        "ensure_weight_tying": tied,
    }


def _tensors(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    pairs: Mapping[str, tuple[Tensor, Tensor]],
    biases: Mapping[str, Tensor],
    whole: list[str],
    section: Mapping[str, Any],
) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path, (a, b) in pairs.items():
        key = f"{FILE_PREFIX}{path}"
        if isinstance(modules[path], nn.Embedding):
            found |= {f"{key}.lora_embedding_A": a, f"{key}.lora_embedding_B": b}
            continue
        found |= {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}
        if section["lora_bias"]:
            found[f"{key}.lora_B.bias"] = biases.get(path, torch.zeros(b.shape[0]))
    for path in whole:
        for name, parameter in modules[path].named_parameters():
            found[f"{FILE_PREFIX}{path}.{name}"] = parameter.detach().float()
    if section["ensure_weight_tying"]:
        found |= _tied_head(model, modules, pairs)
    return found


def _tied_head(
    model: nn.Module, modules: Mapping[str, nn.Module], pairs: Mapping[str, tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    """The head's pair, which the format writes beside the embedding's: its transposes."""
    paths = {id(module): path for path, module in modules.items()}
    embedding, head = input_embedding(model), output_embedding(model)
    path = paths.get(id(embedding), "")
    if path not in pairs or head is None:
        return {}
    a, b = pairs[path]
    key = f"{FILE_PREFIX}{paths[id(head)]}"
    return {f"{key}.lora_A.weight": b.T.contiguous(), f"{key}.lora_B.weight": a.T.contiguous()}
