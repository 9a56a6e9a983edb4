"""Optimizers by name, from well-kept libraries: torch, transformers, or an extra that is named when missing."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Muon, Optimizer

from peftcli.errors import DeviceError, RecipeError
from peftcli.training.library_optimizers_config import ApolloConfig, GaLoreConfig, LibraryConfig
from peftcli.training.optimizer_config import (
    AdafactorConfig,
    AdamWConfig,
    EightBitAdamWConfig,
    MuonConfig,
    OptimizerConfig,
    SGDConfig,
)
from peftcli.training.optimizer_state import KEPT_OBJECTS

Groups = list[dict[str, Any]]

_FUSED_DEVICES = ("cpu", "cuda", "mps")


def build_optimizer(config: OptimizerConfig, groups: Groups, *, learning_rate: float) -> Optimizer:
    """Returns the optimizer of `config` over `groups`, whose `lr` (default: `learning_rate`) is each one's peak.

    Raises `DeviceError` for a package or device that is missing, `RecipeError` where one optimizer cannot take several
    rates.
    """
    groups = [{"lr": learning_rate, "weight_decay": 0.0, **group} for group in groups if group["params"]]
    match config:
        case AdamWConfig():
            return AdamW(groups, lr=learning_rate, betas=config.betas, eps=config.eps, fused=_fused(groups))
        case SGDConfig():
            return DecoupledSGD(groups, lr=learning_rate, momentum=config.momentum, nesterov=config.nesterov)
        case AdafactorConfig():
            return _adafactor(config, groups, learning_rate)
        case MuonConfig():
            return MuonWithAdamW(config, groups, learning_rate)
        case LibraryConfig():
            return _from_library(config, groups, learning_rate)
        case EightBitAdamWConfig():
            return _bitsandbytes(config, groups, learning_rate)


def split_by_decay(groups: Groups, decays: Callable[[Any], bool]) -> Groups:
    """The same groups, those that decay without the tensors that must not, which follow in a group of their own."""
    found: Groups = []
    for group in groups:
        kept = [parameter for parameter in group["params"] if decays(parameter)]
        others = [parameter for parameter in group["params"] if not decays(parameter)]
        # order and number of groups stay as they are where nothing is split, for checkpoints name tensors by them
        if group.get("weight_decay") and kept and others:
            found += [{**group, "params": kept}, {**group, "params": others, "weight_decay": 0.0}]
        elif group.get("weight_decay") and others:
            found.append({**group, "weight_decay": 0.0})
        else:
            found.append(group)
    return found


class DecoupledSGD(SGD):
    """SGD whose weight decay acts on the weights and never enters the momentum (arXiv:1711.05101, algorithm 1)."""

    def __init__(self, groups: Groups, **settings: Any) -> None:
        # torch adds `weight_decay` to the gradient; under another name it is left to this class
        own = [{**group, "weight_decay": 0.0, "decoupled_decay": group["weight_decay"]} for group in groups]
        super().__init__(own, **settings)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step: the weights shrink by rate times decay, then torch's own update."""
        for group in self.param_groups:
            if group["decoupled_decay"]:
                moved = [parameter for parameter in group["params"] if parameter.grad is not None]
                # before torch's update, and with the rate of this step, as AdamW does it
                torch._foreach_mul_(moved, 1.0 - group["lr"] * group["decoupled_decay"])
        return super().step(closure)


def require_optimizer(config: OptimizerConfig, *, device: str) -> None:
    """Raises `DeviceError` where the optimizer's device or package is missing."""
    require_device(config, device=device)
    if config.package is not None:
        _require(config.package, config.type)


def require_device(config: OptimizerConfig, *, device: str) -> None:
    """Raises `DeviceError` where the optimizer does not run on the device."""
    if isinstance(config, EightBitAdamWConfig) and not device.startswith("cuda"):
        raise DeviceError(f"optimizer {config.type} needs a CUDA GPU", fix="use optimizer: adamw")


def _fused(groups: Groups) -> bool:
    parameters = [parameter for group in groups for parameter in group["params"]]
    # torch's fused kernels take floating-point tensors of these devices alone
    return all(parameter.is_floating_point() and parameter.device.type in _FUSED_DEVICES for parameter in parameters)


def _adafactor(config: AdafactorConfig, groups: Groups, learning_rate: float) -> Optimizer:
    from transformers.optimization import Adafactor

    optimizer: Optimizer = Adafactor(
        groups,
        lr=learning_rate,
        clip_threshold=config.clip_threshold,
        decay_rate=config.decay_rate,
        scale_parameter=config.scale_parameter,
        relative_step=False,
    )
    return optimizer


class MuonWithAdamW(Optimizer):
    """Muon for matrices and AdamW for the rest, as one optimizer: they share the groups and the state."""

    def __init__(self, config: MuonConfig, groups: Groups, learning_rate: float) -> None:
        # Muon orthogonalises, which means something for matrices alone
        matrices = _part(groups, lambda parameter: parameter.ndim == 2)
        others = _part(groups, lambda parameter: parameter.ndim != 2)
        super().__init__([*matrices, *others], {"lr": learning_rate})
        self.parts: list[Optimizer] = []
        if matrices:
            muon = Muon(
                matrices,
                lr=learning_rate,
                momentum=config.momentum,
                nesterov=config.nesterov,
                ns_steps=config.ns_steps,
                # the update then has AdamW's size, and a recipe's rate means the same for both
                adjust_lr_fn="match_rms_adamw",
            )
            self.parts.append(muon)
        if others:
            self.parts.append(AdamW(others, lr=learning_rate, betas=config.betas, eps=config.eps, fused=_fused(others)))
        self.param_groups = [group for part in self.parts for group in part.param_groups]
        # one state between them: checkpoints read and write it through this object alone
        for part in self.parts:
            part.state = self.state

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """A step of each part."""
        for part in self.parts:
            part.step()


def _part(groups: Groups, belongs: Callable[[Tensor], bool]) -> Groups:
    chosen = []
    for group in groups:
        parameters = [parameter for parameter in group["params"] if belongs(parameter)]
        if parameters:
            chosen.append({**group, "params": parameters})
    return chosen


def _from_library(config: LibraryConfig, groups: Groups, learning_rate: float) -> Optimizer:
    """The class of pytorch-optimizer that a section stands for, with the section's fields as its arguments."""
    library = _require(config.package or "", config.type)
    # the class would use the first group's rate for all, without a word
    if config.one_rate and len({group["lr"] for group in groups}) > 1:
        raise RecipeError(
            f"optimizer {config.type} takes a single rate, and this method trains its tensors at several",
            fix="leave out what sets a rate of its own (loraplus_lr_ratio), or use optimizer: adamw",
        )
    fields = config.model_dump(exclude={"type", *config.group_fields})
    build: Callable[..., Optimizer] = getattr(library, config.class_name)
    if isinstance(config, GaLoreConfig | ApolloConfig):
        from pytorch_optimizer.optimizer.utils.galore import GaLoreProjector

        optimizer = build(_projected(groups, config), lr=learning_rate, **fields, **config.settings)
        setattr(optimizer, KEPT_OBJECTS, {"projector": GaLoreProjector})
        return optimizer
    return build(groups, lr=learning_rate, **fields, **config.settings)


def _projected(groups: Groups, config: GaLoreConfig | ApolloConfig) -> Groups:
    """The matrices that are larger than the projection's rank, with the fields by which they are projected."""

    def is_larger(parameter: Tensor) -> bool:
        return parameter.ndim == 2 and min(parameter.shape) > config.rank

    fields = {name: getattr(config, name) for name in config.group_fields}
    return [*({**group, **fields} for group in _part(groups, is_larger)), *_part(groups, lambda p: not is_larger(p))]


def _bitsandbytes(config: EightBitAdamWConfig, groups: Groups, learning_rate: float) -> Optimizer:
    require_optimizer(config, device=groups[0]["params"][0].device.type)
    library = _require("bitsandbytes", config.type)
    names = {"adamw_8bit": "AdamW8bit", "paged_adamw": "PagedAdamW32bit", "paged_adamw_8bit": "PagedAdamW8bit"}
    build = getattr(library.optim, names[config.type])
    optimizer: Optimizer = build(
        groups, lr=learning_rate, betas=config.betas, eps=config.eps, min_8bit_size=config.min_8bit_size
    )
    return optimizer


def _require(package: str, optimizer: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise DeviceError(
            f"optimizer {optimizer} needs the package {package}, which is not installed",
            fix=f"pip install {package}; or use optimizer: adamw",
        ) from error
