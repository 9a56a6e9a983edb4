"""AdaLoRA (arXiv:2303.10512).

    y = W x + b + s B (E * (A x))        s = lora_alpha / (init_r + 1e-5)

Shapes: A (r, in_features), E (r, 1), B (out_features, r); r is init_r while training, and what is left on disk once
pruning has ended, 0 included. The loss gains orth_reg_weight times the mean over all A and B of ||P P^T - I||.

Keys: `P.lora_A`, `P.lora_B`, `P.lora_E`, without `.weight`; `rank_pattern` in the configuration says which of the
init_r triplets are left. Compared with peft 0.21.2, whose Trainer never prunes; here `after_step` does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from peftcli.adapters.base import FILE_PREFIX, Entry, Shapes
from peftcli.adapters.layers import AdapterLayer
from peftcli.adapters.layers_method import LayersAdapter
from peftcli.adapters.linears import Biases, LinearsAdapter, LinearsMethod
from peftcli.adapters.methods.adalora.allocation import Importance, Schedule, apply_mask, mask_lowest
from peftcli.adapters.methods.adalora.config import AdaloraConfig
from peftcli.adapters.methods.adalora.layer import AdaloraLinear
from peftcli.errors import Fault
from peftcli.models.weights import weight_view


class AdaloraAdapter(LinearsAdapter):
    """Carries the schedule: importance by layer, and in the end which triplets are left."""

    config: AdaloraConfig

    def __init__(self, model: nn.Module, config: AdaloraConfig) -> None:
        super().__init__(model, config)
        self.importance: dict[str, Importance] = {}
        self.left: dict[str, Tensor] = {}
        """Path -> which of init_r triplets are left, boolean (init_r,); all true until pruning ends."""
        self.settled = torch.zeros((), dtype=torch.bool)
        self.total_steps = torch.zeros((), dtype=torch.long)

    def triplets(self) -> list[tuple[str, AdaloraLinear]]:
        """Path and wrapper of every adapted layer."""
        return [(path, layer) for path, layer in self.layers if isinstance(layer, AdaloraLinear)]

    def prepare(self) -> None:
        """Allocates what the schedule remembers."""
        pattern = self.config.rank_pattern or {}
        for path, layer in self.triplets():
            self.importance[path] = Importance(layer)
            left = pattern.get(f"{path}.lora_E", [True] * self.config.init_r)
            # beside the triplets: they are masked with it at each step once pruning has ended
            self.left[path] = torch.tensor(left, dtype=torch.bool, device=layer.lora_E.device)
        self.settled.fill_(bool(pattern))

    # -- training ------------------------------------------------------------------------------------------------

    def after_step(self, step: int, total_steps: int) -> None:
        """Measures importance, and prunes or masks the triplets as the schedule has it (Algorithm 1)."""
        if self.config.rank_pattern:
            return  # loaded pruned: the tensors hold nothing but what is left
        self.total_steps.fill_(total_steps)
        schedule = Schedule.of(self.config, total_steps)
        # the reference counts steps from 0, and asks after the step
        now = step - 1
        if now > schedule.end or (now == schedule.end and bool(self.settled)):
            for path, layer in self.triplets():
                apply_mask(layer, self.left[path])
            return
        if now < schedule.end:
            for path, layer in self.triplets():
                self.importance[path].update(layer, self.config.beta1, self.config.beta2)
        if schedule.prunes(now):
            self._prune(schedule, now)

    def _prune(self, schedule: Schedule, now: int) -> None:
        layers = [layer for _, layer in self.triplets()]
        count = len(layers)
        kept = schedule.budget(now, self.config.init_r * count, self.config.target_r * count)
        left = mask_lowest(layers, [importance.scores() for importance in self.importance.values()], kept)
        if now == schedule.end:
            for (path, _), mask in zip(self.triplets(), left, strict=True):
                self.left[path].copy_(mask)
            self.settled.fill_(True)

    def extra_loss(self) -> Tensor | None:
        """orth_reg_weight times the mean of ||P P^T - I|| over all A and B (eq. 4); None where the weight is 0."""
        if self.config.orth_reg_weight == 0:
            return None
        terms = [layer.orthogonality() for _, layer in self.triplets()]
        # the mean over all A and B, of which each layer has two
        return self.config.orth_reg_weight * torch.stack(terms).sum() / (2 * len(terms))

    # -- tensors -------------------------------------------------------------------------------------------------

    def entries(self) -> list[Entry]:
        """As in the base class; once pruning has ended, each tensor goes to disk with the triplets that are left alone."""
        found = super().entries()
        if not bool(self.settled) or self.config.rank_pattern:
            return found
        masks = {id(t): (name, self.left[path]) for path, la in self.triplets() for name, t in la.tensors().items()}
        for entry in found:
            if id(entry.tensor) in masks:
                name, left = masks[id(entry.tensor)]
                entry.to_disk = _keep_columns(left) if name == "lora_B" else _keep_rows(left)
        return found

    def state(self) -> dict[str, Tensor]:
        """Also what the schedule remembers: importance by triplet, what is left, the steps in all."""
        tensors = super().state() | {"settled": self.settled, "total_steps": self.total_steps}
        for path, importance in self.importance.items():
            tensors[f"{path}.left"] = self.left[path]
            for name in importance.sensitivity:
                tensors[f"{path}.{name}.sensitivity"] = importance.sensitivity[name]
                tensors[f"{path}.{name}.uncertainty"] = importance.uncertainty[name]
        return tensors

    def resolved_fields(self) -> dict[str, Any]:
        """Steps of the schedule as they were used, and with pruning over `rank_pattern`."""
        schedule = Schedule.of(self.config, int(self.total_steps))
        # the reference refuses a file without steps to prune in
        total = max(schedule.total, schedule.tinit + schedule.tfinal + 1)
        changes: dict[str, Any] = {"tinit": schedule.tinit, "tfinal": schedule.tfinal, "total_step": total}
        if bool(self.settled):
            changes["rank_pattern"] = {f"{path}.lora_E": left.tolist() for path, left in self.left.items()}
        return super().resolved_fields() | changes

    def start_differs(self) -> str | None:
        return None if self.config.init_lora_weights else "init_lora_weights: false starts at random"


def _keep_rows(left: Tensor) -> Any:
    return lambda tensor: tensor[left.nonzero().flatten().to(tensor.device)]


def _keep_columns(left: Tensor) -> Any:
    return lambda tensor: tensor[:, left.nonzero().flatten().to(tensor.device)]


class Adalora(LinearsMethod[AdaloraConfig]):
    """Wraps each linear layer that is targeted, at init_r or at what a file says is left."""

    config_class = AdaloraConfig
    tensor_prefix = "lora_"

    def new_adapter(self, model: nn.Module, config: AdaloraConfig) -> AdaloraAdapter:
        return AdaloraAdapter(model, config)

    def trained_biases(self, config: AdaloraConfig) -> Biases:
        return "targets" if config.bias == "lora_only" else config.bias

    def faults(self, config: AdaloraConfig, path: str, module: nn.Module, shapes: Shapes | None) -> list[Fault]:
        """A rank above what the layer allows, or one that the file's tensors do not have."""
        r = _rank(config, path)
        if shapes is None:
            limit = min(weight_view(module).shape)
            return [Fault(f"init_r = {r} is larger than `{path}` allows ({limit})")] if r > limit else []
        found = shapes.get(f"{FILE_PREFIX}{path}.lora_A")
        if found is not None and found[:1] != (r,):
            return [Fault(f"adapter_config.json leaves `{path}` rank {r}, its tensors have shape {list(found)}")]
        return []

    def layer(self, config: AdaloraConfig, path: str, module: nn.Module, shapes: Shapes | None) -> AdapterLayer:
        return AdaloraLinear(module, _rank(config, path), config)

    def finish(self, adapter: LayersAdapter, config: AdaloraConfig, shapes: Shapes | None) -> None:
        """As in the base class; then the schedule gets its memory."""
        super().finish(adapter, config, shapes)
        assert isinstance(adapter, AdaloraAdapter)
        adapter.prepare()


def _rank(config: AdaloraConfig, path: str) -> int:
    left = (config.rank_pattern or {}).get(f"{path}.lora_E")
    return config.init_r if left is None else sum(left)


METHOD = Adalora()
