"""LoRA (arXiv:2106.09685).

    y = W x + b + s (B A dropout(x) + b_B)        s = lora_alpha / r, or lora_alpha / sqrt(r) with `use_rslora`

Shapes: A (r, in_features), B (out_features, r), b_B (out_features,) with `lora_bias`.
For an embedding: y = E[x] + s B A[:, x], A (r, num_embeddings), B (embedding_dim, r).
Variants, one file each: DoRA (`dora`), starts from weights (`inits`), activations (`eva`) and gradients
(`gradient_start`), fused experts (`experts`), single tokens (`tokens`).

Keys: `P.lora_A.weight`, `P.lora_B.weight`, `P.lora_B.bias`; embeddings `P.lora_embedding_A`, `P.lora_embedding_B`;
DoRA `P.lora_magnitude_vector`; tokens `P.token_adapter.trainable_tokens_delta`. Compared with peft 0.21.2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import nn

from peftcli.adapters.base import Shapes
from peftcli.adapters.layers import (
    AdapterLayer,
    LayersAdapter,
    named_base_modules,
    named_base_parameters,
    parent_of,
    unwrapped,
)
from peftcli.adapters.linears import Biases, LinearsMethod, rank_faults
from peftcli.adapters.methods.lora.adapter import LoraAdapter, embedding_modules
from peftcli.adapters.methods.lora.config import LoraConfig
from peftcli.adapters.methods.lora.embedding import LoraEmbedding, LoraTiedHead
from peftcli.adapters.methods.lora.experts import LoraParameter
from peftcli.adapters.methods.lora.linear import LoraLinear
from peftcli.adapters.methods.lora.tokens import TokenRows
from peftcli.adapters.selection import wrap_named_modules
from peftcli.adapters.targets import names_path, pattern_value
from peftcli.errors import AdapterError, Fault
from peftcli.models.structure import embeddings_are_tied, input_embedding
from peftcli.models.weights import is_linear


class Lora(LinearsMethod[LoraConfig]):
    """Finds the targets and wraps each."""

    config_class = LoraConfig

    def new_adapter(self, model: nn.Module, config: LoraConfig) -> LoraAdapter:
        return LoraAdapter(model, config)

    def supports(self, module: nn.Module) -> bool:
        return is_linear(module) or isinstance(module, nn.Embedding)

    def trained_biases(self, config: LoraConfig) -> Biases:
        return "targets" if config.bias == "lora_only" else config.bias

    def found(self, model: nn.Module, config: LoraConfig) -> Mapping[str, nn.Module]:
        if not config.target_modules and config.target_parameters:
            return {}
        found = dict(super().found(model, config))
        ties = tied_paths(model) if config.ensure_weight_tying else None
        if ties is not None and found.keys() & ties:
            if config.use_dora:
                raise AdapterError("use_dora and ensure_weight_tying cannot both adapt the tied embeddings")
            # one pair serves both: it lives on the input embedding
            embedding, head = ties
            found.pop(head, None)
            found = {embedding: dict(named_base_modules(model))[embedding], **found}
        return found

    def faults(self, config: LoraConfig, path: str, module: nn.Module, shapes: Shapes | None) -> list[Fault]:
        tensor = "lora_embedding_A" if isinstance(module, nn.Embedding) else "lora_A.weight"
        return rank_faults(path, module, rank_of(config, path), shapes, tensor)

    def layer(self, config: LoraConfig, path: str, module: nn.Module, shapes: Shapes | None) -> AdapterLayer:
        r = rank_of(config, path)
        kind = LoraEmbedding if isinstance(unwrapped(module), nn.Embedding) else LoraLinear
        return kind(module, r, scaling_of(config, path, r), config)

    def finish(self, adapter: LayersAdapter, config: LoraConfig, shapes: Shapes | None) -> None:
        assert isinstance(adapter, LoraAdapter)
        _tie_head(adapter, config)
        _wrap_parameters(adapter, config, shapes)
        _wrap_tokens(adapter, config)
        super().finish(adapter, config, shapes)
        adapter.absent_keys = frozenset(entry.key for entry in adapter.entries() if entry.optional)
        if shapes is not None and config.shifts_base:
            adapter.rebuild_start()

    def save_modules(self, adapter: LayersAdapter, config: LoraConfig, shapes: Shapes | None) -> None:
        names = list(config.modules_to_save or [])
        ties = tied_paths(adapter.model) if config.ensure_weight_tying else None
        if ties is not None and any(names_path(name, path) for name in names for path in ties):
            # the other of the two is trained with it, as the same tensor
            wrap_named_modules(adapter, ties)
            names = [name for name in names if not any(names_path(name, path) for path in ties)]
        unmatched = wrap_named_modules(adapter, names, tie=config.ensure_weight_tying, loosely=shapes is not None)
        # a file of the reference lists every name that a head may have; ours must all be there
        if unmatched and shapes is None:
            raise AdapterError(
                "modules_to_save names modules that this model does not have",
                faults=[Fault(f"`{name}` matches nothing") for name in unmatched],
            )


def rank_of(config: LoraConfig, path: str) -> int:
    """Rank of one layer after `rank_pattern`."""
    return int(pattern_value(config.rank_pattern, path, config.r))


def scaling_of(config: LoraConfig, path: str, r: int) -> float:
    """The factor s of one layer after `alpha_pattern`."""
    alpha = float(pattern_value(config.alpha_pattern, path, config.lora_alpha))
    return alpha / math.sqrt(r) if config.use_rslora else alpha / r


def tied_paths(model: nn.Module) -> tuple[str, str] | None:
    """Paths of input and output embedding where they are one tensor."""
    if not embeddings_are_tied(model):
        return None
    paths = {id(module): path for path, module in named_base_modules(model)}
    embedding, head = (paths[id(module)] for module in embedding_modules(model))
    return embedding, head


def module_at(model: nn.Module, path: str) -> nn.Module:
    """What stands at a path now, wrapped or not."""
    parent, name = parent_of(model, path)
    return parent.get_submodule(name)


def _tie_head(adapter: LoraAdapter, config: LoraConfig) -> None:
    ties = tied_paths(adapter.model) if config.ensure_weight_tying else None
    if ties is None or ties[0] not in adapter.sites:
        return
    embedding, head = ties
    pair = next(layer for path, layer in adapter.layers if path == embedding and isinstance(layer, LoraEmbedding))
    adapter.wrap(head, LoraTiedHead(module_at(adapter.model, head), pair))


def _wrap_parameters(adapter: LoraAdapter, config: LoraConfig, shapes: Shapes | None) -> None:
    wanted = config.target_parameters or []
    names = [name for name, _ in named_base_parameters(adapter.model)]
    unmatched = [entry for entry in wanted if not any(names_path(entry, name) for name in names)]
    if unmatched:
        weights = sorted({name.rsplit(".", 1)[-1] for name, p in named_base_parameters(adapter.model) if p.dim() == 3})
        raise AdapterError(
            "target_parameters names weights that this model does not have",
            faults=[
                Fault(f"`{entry}` matches nothing", fix=f"fused weights here: {', '.join(weights) or 'none'}")
                for entry in unmatched
            ],
        )
    for name in names:
        if any(names_path(entry, name) for entry in wanted):
            path, leaf = name.rsplit(".", 1)
            r = rank_of(config, name)
            layer = LoraParameter(module_at(adapter.model, path), leaf, r, scaling_of(config, name, r), config)
            adapter.wrap(path, layer)
            adapter.others.append(name)


def _wrap_tokens(adapter: LoraAdapter, config: LoraConfig) -> None:
    wanted = _token_paths(adapter.model, config)
    taken = set(adapter.sites) | {path for path, _ in adapter.layers}
    kept = [path for path in wanted if any(names_path(name, path) for name in config.modules_to_save or [])]
    twice = sorted(taken & wanted.keys()) + kept
    if twice:
        raise AdapterError(
            f"trainable_token_indices and another part of the configuration both adapt {', '.join(twice)}",
            fix="leave it out of target_modules and modules_to_save",
        )
    ties = tied_paths(adapter.model)
    for path, indices in wanted.items():
        is_head = not isinstance(module_at(adapter.model, path), nn.Embedding)
        rows = TokenRows(module_at(adapter.model, path), indices, is_head=is_head)
        adapter.wrap(path, rows)
        adapter.others.append(path)
        if ties is not None and path == ties[0] and ties[1] not in wanted:
            head = module_at(adapter.model, ties[1])
            adapter.wrap(ties[1], TokenRows(head, indices, is_head=True, rows=rows.rows))


def _token_paths(model: nn.Module, config: LoraConfig) -> dict[str, list[int]]:
    wanted = config.trainable_token_indices
    if not wanted:
        return {}
    modules = dict(named_base_modules(model))
    if not isinstance(wanted, dict):
        embedding = input_embedding(model)
        if embedding is None:
            raise AdapterError("trainable_token_indices needs a model with a token embedding")
        return {path: wanted for path, module in modules.items() if module is unwrapped(embedding)}
    found: dict[str, list[int]] = {}
    for name, indices in wanted.items():
        paths = [path for path in modules if path and names_path(name, path)]
        if not paths:
            raise AdapterError(f"trainable_token_indices names `{name}`, which this model does not have")
        found |= dict.fromkeys(paths, indices)
    return found


METHOD = Lora()
