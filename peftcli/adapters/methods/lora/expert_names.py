"""Layers whose names the reference takes for those of experts, and how a file names them so that it does not.

Since transformers 5 keeps the experts of a mixture in one weight, the reference reads the names that their matrices had
before (`gate_proj`, `w1`, and the router's `gate`) as that weight, in every file of such a model, and no longer finds the
dense layers and shared experts of the same name. Named as weights (`target_parameters`), they are read as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from peftcli.adapters.base_modules import named_base_modules, named_base_parameters
from peftcli.adapters.methods.lora.config import LoraConfig
from peftcli.adapters.oddities import named, tell
from peftcli.adapters.targets import ALL_LINEAR, names_path, pattern_value
from peftcli.models.conversions import Conversions
from peftcli.models.experts import routed_weights
from peftcli.models.plain_linear import linear_fault
from peftcli.models.trace import participation
from peftcli.models.weights import is_linear, weight_view

ROUTER = "gate"


def mistaken(model: nn.Module, paths: Iterable[str]) -> list[str]:
    """Of some paths, those that end in a name which the experts' matrices had; none in a model without such experts."""
    former = Conversions(model).former_names()
    return [path for path in paths if former and path.rsplit(".", 1)[-1] in former | {ROUTER}]


def unfit_for_weights(config: LoraConfig) -> bool:
    """Whether the configuration has what no update of a weight can have."""
    return bool(config.use_dora or config.lora_bias or config.lora_dropout)


def with_experts(model: nn.Module, config: LoraConfig) -> LoraConfig:
    """`all-linear` with the weights of fused experts named: they were linear layers before they were fused.

    What `target_parameters` says stands; blocks that the configuration picks (`layers_to_transform`) and names that it
    excludes are left to it.
    """
    if config.target_modules != ALL_LINEAR or config.target_parameters is not None or unfit_for_weights(config):
        return config
    if config.exclude_modules is not None or config.layers_to_transform is not None or config.layer_replication:
        return config
    idle = participation(model).idle
    weights = [name for name in routed_weights(model) if name not in idle]
    return config.model_copy(update={"target_parameters": _short_ends(weights, model)}) if weights else config


def _short_ends(weights: list[str], model: nn.Module) -> list[str]:
    """The last two parts of the weights' names where these name nothing else, else the whole names."""
    ends = sorted({".".join(name.rsplit(".", 2)[-2:]) for name in weights})
    named_so = {name for name, _ in named_base_parameters(model) if any(names_path(end, name) for end in ends)}
    return ends if named_so == set(weights) else weights


def layers_named_as_weights(model: nn.Module, config: LoraConfig) -> dict[str, nn.Module]:
    """Linear layers that `target_parameters` names by their weight: the same update as that of the layer itself."""
    wanted = config.target_parameters or []
    return {
        path: module
        for path, module in (named_base_modules(model) if wanted else ())
        if is_linear(module)
        and linear_fault(module) is None
        # `target_parameters` adds B A in the weight's stored layout, which is that of the layer only where it is not
        # transposed
        and not weight_view(module).transposed
        and any(names_path(entry, f"{path}.weight") for entry in wanted)
    }


def pattern_name(config: LoraConfig, path: str) -> str:
    """The name by which `rank_pattern` and `alpha_pattern` know a layer: of its weight where it is named so."""
    name = f"{path}.weight"
    return name if any(names_path(entry, name) for entry in config.target_parameters or []) else path


def fields_with_weights(model: nn.Module, config: LoraConfig, layers: list[str], modules: list[str]) -> dict[str, Any]:
    """Fields that name `layers` as weights and `modules` by themselves, with the ranks and scales that they have."""
    fields: dict[str, Any] = {
        "target_modules": modules,
        "target_parameters": [*(config.target_parameters or []), *(f"{path}.weight" for path in layers)],
    }
    for field, default in (("rank_pattern", config.r), ("alpha_pattern", config.lora_alpha)):
        pattern = dict(getattr(config, field))
        found = {path: pattern_value(pattern, path, default) for path in layers}
        odd = {
            f"{p}.weight": value
            for p, value in found.items()
            if pattern_value(pattern, f"{p}.weight", default) != value
        }
        # in front of what stands there: the first match counts
        if odd:
            fields[field] = odd | pattern
    return fields


def tell_mistaken(paths: list[str], why: str) -> None:
    """Says that the reference will answer otherwise."""
    tell(
        f"Hugging Face PEFT takes {named(paths)} for the experts of this model and answers differently; a file can name "
        f"them rightly only without {why}"
    )
