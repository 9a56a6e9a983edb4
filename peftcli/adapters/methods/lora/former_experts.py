"""Adapters of mixtures whose experts were single linear layers once: pairs of each expert become one fused pair.

    experts.3.gate_proj.lora_A, experts.3.up_proj.lora_A, ...  ->  experts.gate_up_proj: A (R E, in), B (out, R E)

Of an expert's matrices that stand below each other in the fused weight, the ranks stand side by side in A, and B is block
by block; R is the sum of their ranks. Experts without a pair get zeros. So the update is the same, to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from peftcli.adapters.adapter_file import AdapterFile
from peftcli.adapters.base import FILE_PREFIX
from peftcli.adapters.base_modules import named_base_modules, named_base_parameters
from peftcli.adapters.methods.lora.config import LoraConfig
from peftcli.adapters.methods.lora.expert_names import mistaken
from peftcli.adapters.names_in_file import sites_in_file
from peftcli.adapters.oddities import named, tell
from peftcli.adapters.targets import pattern_value
from peftcli.errors import AdapterError
from peftcli.models.conversions import Conversions
from peftcli.models.weights import is_adaptable

_HALVES = {"lora_A.weight": "A", "lora_B.weight": "B"}
Place = tuple[int, int]
"""Expert, and which of its matrices in the fused weight."""


@dataclass
class _FusedWeight:
    """The pairs of one fused weight."""

    weight: nn.Parameter
    parts: int
    keys: dict[Place, dict[str, str]] = field(default_factory=dict)
    paths: dict[Place, str] = field(default_factory=dict)

    def ranks(self, file: AdapterFile) -> list[int]:
        """Rank of each part; 0 for one without pairs. Raises `AdapterError` where experts differ."""
        found: list[int] = []
        for part in range(self.parts):
            shapes = [file.shapes[halves["A"]] for (_, which), halves in self.keys.items() if which == part]
            ranks = {shape[0] for shape in shapes}
            if len(ranks) > 1:
                raise AdapterError(f"the experts of `{self.paths[min(self.paths)]}` have pairs of different ranks")
            found.append(ranks.pop() if ranks else 0)
        return found


def with_fused_experts(model: nn.Module, config: LoraConfig, file: AdapterFile) -> tuple[LoraConfig, AdapterFile]:
    """The same adapter on fused experts; unchanged where it has no pairs of single experts.

    Raises `AdapterError` for what fused experts cannot have (DoRA, a bias of B), and for pairs that do not fit.
    """
    weights = dict(named_base_parameters(model))
    found = _grouped(model, weights, file)
    if not found:
        return config, file
    if config.use_dora or config.lora_bias:
        raise AdapterError("DoRA and lora_bias of single experts have no form on this model's fused experts")
    keys = _keys_of(list(weights), found)
    header = {key: facts for key, facts in file.header.items() if key not in _taken(found)}
    ranks, alphas = dict[str, int](), dict[str, float]()
    for name, group in found.items():
        rank = sum(group.ranks(file))
        shape = group.weight.shape
        header[f"{keys[name]}.lora_A.weight"] = ("F32", (rank * shape[0], shape[2]))
        header[f"{keys[name]}.lora_B.weight"] = ("F32", (shape[1], rank * shape[0]))
        ranks[name] = rank
        alphas[name] = _scale(config, group, file) * (math.sqrt(rank) if config.use_rslora else rank)
    tell("pairs of single experts are put together, as this transformers keeps all experts in one weight")
    layers = {path: module for path, module in named_base_modules(model) if is_adaptable(module)}
    sites = sorted(sites_in_file(layers, {key: shape for key, (_, shape) in header.items()}, "lora_"))
    beside = mistaken(model, sites)
    if beside:
        tell(f"{named(beside)} are adapted too; Hugging Face PEFT leaves them out on this model")
    changed = config.model_copy(
        update={
            "target_modules": sites,
            "target_parameters": [*(config.target_parameters or []), *found],
            "rank_pattern": {**ranks, **config.rank_pattern},
            "alpha_pattern": {**alphas, **config.alpha_pattern},
        }
    )
    return changed, replace(file, header=header, read=lambda: _read(config, file, found, keys))


def _grouped(model: nn.Module, weights: Mapping[str, nn.Parameter], file: AdapterFile) -> dict[str, _FusedWeight]:
    conversions = Conversions(model)
    modules = {path for path, _ in named_base_modules(model)}
    found: dict[str, _FusedWeight] = {}
    for key in file.header:
        path, half = _half(key)
        place = conversions.fused_place(f"{path}.weight") if half and path not in modules else None
        weight = weights.get(place.parameter) if place else None
        if place is None or weight is None or weight.dim() != 3 or place.expert >= len(weight):
            continue
        group = found.setdefault(place.parameter, _FusedWeight(weight, place.parts))
        group.keys.setdefault((place.expert, place.part), {})[half] = key
        group.paths[(place.expert, place.part)] = path
    for group in found.values():
        _check(group, file)
    # in the order of the model's weights, by which nested keys are counted
    return {name: found[name] for name in weights if name in found}


def _half(key: str) -> tuple[str, str]:
    """Module path and which half of its pair a key is; an empty half for any other key."""
    for ending, half in _HALVES.items():
        if key.endswith("." + ending):
            return key.removeprefix(FILE_PREFIX).removesuffix("." + ending), half
    return "", ""


def _check(group: _FusedWeight, file: AdapterFile) -> None:
    rows, columns = group.weight.shape[1] // group.parts, group.weight.shape[2]
    for place, halves in group.keys.items():
        shapes = [file.shapes[halves[half]] if half in halves else () for half in "AB"]
        fits = all(len(shape) == 2 for shape in shapes) and (
            shapes[0][1] == columns and shapes[1][0] == rows and shapes[0][0] == shapes[1][1]
        )
        if not fits:
            raise AdapterError(
                f"the pair of `{group.paths[place]}` has shapes {[list(shape) for shape in shapes]}, one expert of this "
                f"model needs [r, {columns}] and [{rows}, r]"
            )


def _taken(found: Mapping[str, _FusedWeight]) -> set[str]:
    return {key for group in found.values() for halves in group.keys.values() for key in halves.values()}


def _keys_of(order: list[str], found: Mapping[str, _FusedWeight]) -> dict[str, str]:
    """Key of each fused pair, without the half: weights of one module are nested, the first innermost."""
    keys: dict[str, str] = {}
    for name in found:
        path = name.rpartition(".")[0]
        beside = [other for other in order if other in found and other.rpartition(".")[0] == path]
        # the innermost of a module's weights is wrapped first, and its key has most `base_layer`s
        depth = len(beside) - 1 - beside.index(name)
        keys[name] = f"{FILE_PREFIX}{path}" + ".base_layer" * depth
    return keys


def _scales(config: LoraConfig, group: _FusedWeight, file: AdapterFile) -> Iterator[tuple[Place, float]]:
    for place in sorted(group.keys):
        rank = file.shapes[group.keys[place]["A"]][0]
        alpha = float(pattern_value(config.alpha_pattern, group.paths[place], config.lora_alpha))
        yield place, alpha / (math.sqrt(rank) if config.use_rslora else rank)


def _scale(config: LoraConfig, group: _FusedWeight, file: AdapterFile) -> float:
    """The scale of a fused pair: that of its first expert's."""
    return next(_scales(config, group, file))[1]


def _read(
    config: LoraConfig, file: AdapterFile, found: Mapping[str, _FusedWeight], keys: Mapping[str, str]
) -> dict[str, Tensor]:
    tensors = dict(file.read())
    for name, group in found.items():
        lora_a, lora_b = _fused_pair(config, group, file, tensors)
        tensors[f"{keys[name]}.lora_A.weight"] = lora_a.flatten(0, 1)
        tensors[f"{keys[name]}.lora_B.weight"] = lora_b.permute(1, 2, 0).flatten(1, 2)
    return {key: tensor for key, tensor in tensors.items() if key not in _taken(found)}


def _fused_pair(
    config: LoraConfig, group: _FusedWeight, file: AdapterFile, tensors: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """A (experts, R, in) and B (experts, out, R)."""
    ranks = group.ranks(file)
    experts, rows, columns = group.weight.shape
    lora_a, lora_b = torch.zeros(experts, sum(ranks), columns), torch.zeros(experts, rows, sum(ranks))
    common, height = _scale(config, group, file), rows // group.parts
    for (expert, part), scale in _scales(config, group, file):
        halves = group.keys[(expert, part)]
        first = sum(ranks[:part])
        at = slice(first, first + ranks[part])
        lora_a[expert, at] = tensors[halves["A"]].float()
        pair_b = tensors[halves["B"]].float()
        lora_b[expert, part * height : (part + 1) * height, at] = (
            # pairs of other scales are brought to the first one's, which the fused pair has
            pair_b * (scale / common) if scale != common else pair_b
        )
    return lora_a, lora_b
