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
from collections.abc import Iterable, Mapping
from typing import ClassVar

from torch import nn

from peftcli.adapters.adapter_file import AdapterFile
from peftcli.adapters.base import Shapes
from peftcli.adapters.base_modules import named_base_modules, named_base_parameters, parent_of
from peftcli.adapters.layers import AdapterLayer, unwrapped
from peftcli.adapters.layers_method import LayersAdapter
from peftcli.adapters.linears import Biases, LinearsMethod, rank_faults
from peftcli.adapters.methods.lora.adapter import LoraAdapter, embedding_modules
from peftcli.adapters.methods.lora.adoption import adopted
from peftcli.adapters.methods.lora.config import MLX_NAMES, LoraConfig
from peftcli.adapters.methods.lora.embedding import LoraEmbedding, LoraTiedHead
from peftcli.adapters.methods.lora.expert_names import (
    layers_named_as_weights,
    pattern_name,
    unfit_for_weights,
    with_experts,
)
from peftcli.adapters.methods.lora.experts import LoraParameter
from peftcli.adapters.methods.lora.linear import LoraLinear
from peftcli.adapters.methods.lora.pairs import section_of, tensors_of
from peftcli.adapters.methods.lora.tokens import ROWS, TokenRows, input_embedding_path, token_sites
from peftcli.adapters.oddities import named, tell
from peftcli.adapters.pairs import Pairs, Written
from peftcli.adapters.selection import train_named_modules, wrap_named_modules
from peftcli.adapters.targets import ALL_LINEAR, names_path, pattern_value
from peftcli.errors import AdapterError, Fault
from peftcli.models.experts import fused_weights
from peftcli.models.structure import embeddings_are_tied
from peftcli.models.weights import is_adaptable, weight_view

FUSED = "of fused experts, which `target_parameters` adds"
ALONE = "of fused experts, which take neither dropout nor DoRA nor a bias"


class Lora(LinearsMethod[LoraConfig]):
    """Finds the targets and wraps each."""

    config_class = LoraConfig
    tensor_prefix = "lora_"
    other_names: ClassVar[Mapping[str, str]] = MLX_NAMES
    repeated_names: ClassVar[tuple[str, ...]] = (ROWS.split(".")[0],)

    def build(self, model: nn.Module, config: LoraConfig, shapes: Shapes | None) -> LayersAdapter:
        return super().build(model, with_experts(model, config) if shapes is None else config, shapes)

    def new_adapter(self, model: nn.Module, config: LoraConfig) -> LoraAdapter:
        return LoraAdapter(model, config)

    def supports(self, module: nn.Module) -> bool:
        return is_adaptable(module)

    def adopt(self, model: nn.Module, config: LoraConfig, file: AdapterFile) -> tuple[LoraConfig, AdapterFile]:
        config, file = super().adopt(model, config, file)
        return adopted(model, config, file)

    def of_pairs(self, model: nn.Module, pairs: Pairs) -> Written:
        return section_of(pairs), tensors_of(model, pairs)

    def trained_biases(self, config: LoraConfig) -> Biases:
        return "targets" if config.bias == "lora_only" else config.bias

    def found(self, model: nn.Module, config: LoraConfig, shapes: Shapes | None) -> Mapping[str, nn.Module]:
        found = layers_named_as_weights(model, config)
        if config.target_modules or not config.target_parameters:
            found |= super().found(model, config, shapes)
            # in the model's order again, for the two ways of naming were put together
            found = {path: module for path, module in named_base_modules(model) if path in found}
        ties = tied_paths(model) if config.ensure_weight_tying else None
        if ties is not None and found.keys() & ties:
            if config.use_dora:
                raise AdapterError("use_dora and ensure_weight_tying cannot both adapt the tied embeddings")
            # one pair serves both: it lives on the input embedding
            embedding, head = ties
            found.pop(head, None)
            found = {embedding: dict(named_base_modules(model))[embedding], **found}
        return found

    def left_out(self, model: nn.Module, config: LoraConfig) -> dict[str, str]:
        found = super().left_out(model, config)
        if config.target_modules != ALL_LINEAR:
            return found
        wanted = config.target_parameters or []
        reason = ALONE if unfit_for_weights(config) else FUSED
        return found | {
            name: reason for name in fused_weights(model) if not any(names_path(entry, name) for entry in wanted)
        }

    def pattern_names(self, model: nn.Module, config: LoraConfig, sites: Iterable[str]) -> list[str]:
        weights = [name for name, _ in named_base_parameters(model)]
        wanted = config.target_parameters or []
        named = [name for name in weights if any(names_path(entry, name) for entry in wanted)]
        return [*(pattern_name(config, path) for path in sites), *named]

    def faults(self, config: LoraConfig, path: str, module: nn.Module, shapes: Shapes | None) -> list[Fault]:
        tensor = "lora_embedding_A" if isinstance(module, nn.Embedding) else "lora_A.weight"
        found = rank_faults(path, module, rank_of(config, path), shapes, tensor)
        if shapes is None and config.init_lora_weights == "loftq" and not weight_view(module).storage.is_packed:
            text = f"init_lora_weights: loftq starts from what quantizing lost, and `{path}` is not quantized"
            found.append(Fault(text, fix="model.quantization: nf4, or leave the layer out of target_modules"))
        return found

    def layer(self, config: LoraConfig, path: str, module: nn.Module, shapes: Shapes | None) -> AdapterLayer:
        r = rank_of(config, path)
        kind = LoraEmbedding if isinstance(unwrapped(module), nn.Embedding) else LoraLinear
        return kind(module, r, scaling_of(config, path, r), config)

    def finish(self, adapter: LayersAdapter, config: LoraConfig, shapes: Shapes | None) -> None:
        assert isinstance(adapter, LoraAdapter)
        _tie_head(adapter, config)
        _wrap_parameters(adapter, config, shapes)
        # tokens last: where a table is adapted as well, the rows go innermost
        _wrap_tokens(adapter, config)
        super().finish(adapter, config, shapes)
        # only now do all pairs exist, each with its shape
        if shapes is not None and config.shifts_base:
            adapter.rebuild_start()

    def save_modules(self, adapter: LayersAdapter, config: LoraConfig, shapes: Shapes | None) -> None:
        names = list(config.modules_to_save or [])
        ties = tied_paths(adapter.model) if config.ensure_weight_tying else None
        if ties is not None and any(names_path(name, path) for name in names for path in ties):
            # the other of the two is trained with it, as the same tensor
            wrap_named_modules(adapter, ties)
            names = [name for name in names if not any(names_path(name, path) for path in ties)]
        from_file = shapes is not None
        train_named_modules(adapter, names, may_lack=from_file, tie=config.ensure_weight_tying, loosely=from_file)


def rank_of(config: LoraConfig, path: str) -> int:
    """Rank of one layer after `rank_pattern`."""
    return int(pattern_value(config.rank_pattern, pattern_name(config, path), config.r))


def scaling_of(config: LoraConfig, path: str, r: int) -> float:
    """The factor s of one layer after `alpha_pattern`."""
    alpha = float(pattern_value(config.alpha_pattern, pattern_name(config, path), config.lora_alpha))
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
    if unmatched and shapes is not None and (adapter.sites or len(unmatched) < len(wanted)):
        tell(f"target_parameters names what this model does not have: {named(unmatched)}")
    elif unmatched:
        weights = sorted({name.rsplit(".", 1)[-1] for name, p in named_base_parameters(adapter.model) if p.dim() == 3})
        raise AdapterError(
            "target_parameters names weights that this model does not have",
            faults=[
                Fault(f"`{entry}` matches nothing", fix=f"fused weights here: {', '.join(weights) or 'none'}")
                for entry in unmatched
            ],
        )
    for name in names:
        if any(names_path(entry, name) for entry in wanted) and name.removesuffix(".weight") not in adapter.sites:
            path, leaf = name.rsplit(".", 1)
            r = rank_of(config, name)
            layer = LoraParameter(module_at(adapter.model, path), leaf, r, scaling_of(config, name, r), config)
            adapter.wrap(path, layer)
            adapter.others.append(name)


def _wrap_tokens(adapter: LoraAdapter, config: LoraConfig) -> None:
    wanted, shared = token_sites(adapter.model, config)
    taken = set(adapter.sites) | {path for path, _ in adapter.layers}
    places = [*wanted, *(path for path in shared if path not in wanted)]
    kept = [path for path in places if any(names_path(name, path) for name in config.modules_to_save or [])]
    # the length of a row that is trained twice is no column norm of the base
    normed = [path for path in shared if config.use_dora and path in adapter.sites]
    twice = sorted({*(taken & wanted.keys()), *kept, *normed})
    if twice:
        tied = sorted(set(twice) - wanted.keys())
        raise AdapterError(
            f"trainable_token_indices and another part of the configuration both adapt {', '.join(twice)}"
            + (f" ({', '.join(tied)}: tied to the token embedding)" if tied else ""),
            fix="leave it out of target_modules and modules_to_save",
        )
    for path, indices in wanted.items():
        if path in shared:
            continue
        rows = _token_rows(adapter, path, indices)
        adapter.others.append(path)
        if path == input_embedding_path(adapter.model):
            for other in shared:
                _token_rows(adapter, other, indices, rows.rows)


def _token_rows(adapter: LoraAdapter, path: str, indices: list[int], rows: nn.Parameter | None = None) -> TokenRows:
    module = module_at(adapter.model, path)
    bare = unwrapped(module)
    layer = TokenRows(
        module if path not in adapter.sites else bare, indices, is_head=not isinstance(bare, nn.Embedding), rows=rows
    )
    if path in adapter.sites:
        # the table is changed, and the update comes on top of it, as in the reference
        adapter.wrap_innermost(path, layer)
    else:
        adapter.wrap(path, layer)
    return layer


METHOD = Lora()
