"""LoRA on one model: entries, parameter groups, and how a start that shifts the base is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from peftcli.adapters.base import FILE_PREFIX, Around, Entry, InitContext
from peftcli.adapters.config import MethodConfig
from peftcli.adapters.layers import unwrapped
from peftcli.adapters.linears import LinearsAdapter
from peftcli.adapters.methods.lora.config import LoraConfig
from peftcli.adapters.methods.lora.embedding import LoraEmbedding, LoraTiedHead
from peftcli.adapters.methods.lora.eva import start_from_activations, take_ranks
from peftcli.adapters.methods.lora.expert_names import (
    fields_with_weights,
    layers_named_as_weights,
    mistaken,
    tell_mistaken,
)
from peftcli.adapters.methods.lora.experts import LoraParameter
from peftcli.adapters.methods.lora.gradient_start import start_from_gradients
from peftcli.adapters.methods.lora.linear import LoraLinear, cannot_rebuild
from peftcli.adapters.methods.lora.refused_names import tell_refused
from peftcli.adapters.methods.lora.replication import Replication
from peftcli.adapters.methods.lora.tokens import TokenRows
from peftcli.adapters.names_in_file import shortest_names
from peftcli.models.structure import input_embedding, output_embedding

Pair = LoraLinear | LoraEmbedding | LoraParameter


class LoraAdapter(LinearsAdapter):
    """Adds what LoRA's files say beyond the pairs: tied heads, copies of embeddings, starts that shift the base."""

    config: LoraConfig

    def __init__(self, model: nn.Module, config: LoraConfig) -> None:
        super().__init__(model, config)
        self.replication = Replication.of(model, config.layer_replication) if config.layer_replication else None
        self.others: list[str] = []
        """Paths of what is adapted beside the sites: expert weights, token rows."""

    def targets(self) -> list[str]:
        return [*self.sites, *self.others]

    def linear_pairs(self) -> list[tuple[str, LoraLinear]]:
        """Path and wrapper of every adapted linear layer."""
        return [(path, layer) for path, layer in self.layers if isinstance(layer, LoraLinear)]

    def resolved_fields(self) -> dict[str, Any]:
        changes = super().resolved_fields()
        named = layers_named_as_weights(self.model, self.config)
        sites = [path for path in self.sites if path not in named]
        tell_refused(self.model, sites)
        odd = mistaken(self.model, sites)
        # with DoRA or a bias of B a layer cannot be named by its weight, and the reference will read it wrongly
        if odd and (unfit := self._unfit_for_weights()):
            tell_mistaken(odd, unfit)
        elif odd or (named and "target_modules" in changes):
            modules = shortest_names([path for path in sites if path not in odd], self.model)
            config = self.config.model_copy(update=changes)
            changes |= fields_with_weights(self.model, config, odd, modules)
        if self.config.init_lora_weights == "loftq":
            # it left nothing behind but A and B, and to the reference it would mean another base
            changes["init_lora_weights"] = True
        if self.config.target_parameters or "target_parameters" in changes:
            # the reference refuses it there, and answers do not depend on it
            changes["lora_dropout"] = 0.0
        return changes

    def _unfit_for_weights(self) -> str:
        """Fields of this configuration that no weight can have in a file."""
        return ", ".join(field for field in ("use_dora", "lora_bias") if getattr(self.config, field))

    # -- life cycle -------------------------------------------------------------------------------------------------

    def set_enabled(self, enabled: bool) -> None:
        super().set_enabled(enabled)
        if self.replication is not None:
            self.replication.switch(enabled)

    def remove(self) -> None:
        if self.replication is not None:
            # wrappers stand on the grown blocks, so these must be in place to take them off
            self.replication.switch(True)
        super().remove()
        if self.replication is not None:
            self.replication.switch(False)

    def merge(self, around: Around | None = None) -> None:
        # the wrappers go one by one, so that the grown model is left and not the base's own blocks
        replication, self.replication = self.replication, None
        try:
            super().merge(around)
        # Ctrl-C too: the adapter is still on, and its replication with it
        except BaseException:
            self.replication = replication
            raise
        if replication is not None:
            replication.settle()

    # -- tensors -------------------------------------------------------------------------------------------------

    def entries(self) -> list[Entry]:
        return [*super().entries(), *self._tied_entries()]

    def _tied_entries(self) -> Iterator[Entry]:
        for path, layer in self.layers:
            if isinstance(layer, LoraTiedHead):
                key, pair = f"{FILE_PREFIX}{self.disk_path(path, layer)}", layer.embedding
                yield Entry(f"{key}.lora_A.weight", pair.lora_embedding_B, to_disk=torch.t, fixed=True)
                yield Entry(f"{key}.lora_B.weight", pair.lora_embedding_A, to_disk=torch.t, fixed=True)

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        found: dict[str, nn.Parameter] = {}
        seen: set[int] = set()
        # a copy that stands under two keys is one parameter to an optimizer
        for entry in self.entries():
            if isinstance(entry.tensor, nn.Parameter) and not entry.fixed and id(entry.tensor) not in seen:
                seen.add(id(entry.tensor))
                found[entry.key] = entry.tensor
        return found

    def state(self) -> dict[str, Tensor]:
        tensors = {entry.key: entry.tensor.detach() for entry in self.entries() if not entry.fixed}
        for path, layer in self.linear_pairs():
            for name, tensor in layer.frozen_start().items():
                tensors[f"{FILE_PREFIX}{self.disk_path(path, layer)}.{name}"] = tensor
        return tensors

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        if self.config.init_lora_weights == "eva":
            # the start gave layers other ranks than the configuration, and is not repeated
            pairs = self.linear_pairs()
            keys = {path: f"{FILE_PREFIX}{self.disk_path(path, layer)}.lora_A.weight" for path, layer in pairs}
            # only where every pair is there: another state fails below, by names
            if state.keys() >= set(keys.values()):
                ranks = {path: len(state[key]) for path, key in keys.items()}
                self.config = self.config.model_copy(update=take_ranks(pairs, ranks, self.config))
        super().load_state(state)

    def gradient_exempt(self) -> frozenset[str]:
        # rows of tokens that a batch does not hold
        rows = {id(layer.rows) for _, layer in self.layers if isinstance(layer, TokenRows)}
        return frozenset(key for key, tensor in self.trainable_parameters().items() if id(tensor) in rows)

    # -- start and files -------------------------------------------------------------------------------------------

    def initialise(self, context: InitContext) -> None:
        super().initialise(context)
        if self.config.init_lora_weights == "eva":
            changes = start_from_activations(self.model, self.linear_pairs(), self.config, context)
            self.config = self.config.model_copy(update=changes)
        elif self.config.init_lora_weights == "lora_ga":
            start_from_gradients(self.model, self.linear_pairs(), self.config, context)

    def rebuild_start(self) -> None:
        """Computes again what a file of the reference leaves out: the frozen start that its base was shifted by."""
        how = self.config.init_lora_weights
        if how not in ("pissa", "olora"):
            raise cannot_rebuild(str(how))
        for _, layer in self.linear_pairs():
            # a plan on the meta device has no weight to start from
            if not layer.lora_A.is_meta:
                layer.start_from_weight(None)

    def start_differs(self) -> str | None:
        reasons = {False: "starts at random", "loftq": "starts nearer to the base before it was quantized"}
        found = reasons.get(self.config.init_lora_weights)
        return None if found is None else f"init_lora_weights: {str(self.config.init_lora_weights).lower()} {found}"

    def saved_differently(self) -> str | None:
        if not self.config.shifts_base:
            return None
        return "its start shifts the base, so it is written as plain LoRA of twice the rank"

    def saved(self) -> tuple[MethodConfig, dict[str, Tensor]]:
        config, tensors = super().saved()
        if not self.config.shifts_base:
            return config, tensors
        assert isinstance(config, LoraConfig)
        for path, layer in self.layers:
            if isinstance(layer, Pair):
                key = f"{FILE_PREFIX}{self.disk_path(path, layer)}"
                tensors |= {f"{key}.{name}": tensor.detach() for name, tensor in layer.plain_tensors().items()}
        for path, layer in self.layers:
            if isinstance(layer, LoraTiedHead):
                key, pair = f"{FILE_PREFIX}{self.disk_path(path, layer)}", layer.embedding.plain_tensors()
                tensors[f"{key}.lora_A.weight"] = pair["lora_embedding_B"].T
                tensors[f"{key}.lora_B.weight"] = pair["lora_embedding_A"].T
        return config.doubled(), tensors

    # -- training ------------------------------------------------------------------------------------------------

    def parameter_groups(self, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        ratio = self.config.loraplus_lr_ratio
        if ratio is None:
            return super().parameter_groups(learning_rate, weight_decay)
        # by identity: the same tensor may be written under several keys
        fast = {id(tensor) for tensor in self._halves("B")}
        parameters = list(self.trainable_parameters().values())
        groups = [
            ([p for p in parameters if id(p) not in fast], learning_rate),
            ([p for p in parameters if id(p) in fast], learning_rate * ratio),
        ]
        return [{"params": members, "lr": rate, "weight_decay": weight_decay} for members, rate in groups if members]

    def _halves(self, half: str) -> Iterator[Tensor]:
        for _, layer in self.layers:
            if isinstance(layer, LoraLinear | LoraParameter):
                tensors = layer.tensors()
                yield from (
                    tensors[name] for name, which in layer.half_names().items() if which == half and name in tensors
                )


def embedding_modules(model: nn.Module) -> list[nn.Module]:
    """Input and output embedding of the base, where the model has them."""
    found = (input_embedding(model), output_embedding(model))
    return [unwrapped(module) for module in found if module is not None]
