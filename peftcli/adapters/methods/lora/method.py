"""LoRA (arXiv:2106.09685).

    y = W x + b + s (B A dropout(x) + b_B)        s = lora_alpha / r, or lora_alpha / sqrt(r) with `use_rslora`

Shapes: A (r, in_features), B (out_features, r), b_B (out_features,) with `lora_bias`.
For an embedding: y = E[x] + s B A[:, x], A (r, num_embeddings), B (embedding_dim, r).

Keys: `P.lora_A.weight`, `P.lora_B.weight`, `P.lora_B.bias`; embeddings `P.lora_embedding_A`, `P.lora_embedding_B`.
Compared with peft 0.21.2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftcli.adapters.base import FILE_PREFIX, Entry, InitContext, Shapes
from peftcli.adapters.layers import AdapterLayer, LayersAdapter, LayersMethod, named_base_modules, unwrapped
from peftcli.adapters.methods.lora.config import LoraConfig
from peftcli.adapters.selection import SelectedParameters, wrap_named_modules
from peftcli.adapters.targets import find_targets, pattern_value, unmatched_pattern_keys
from peftcli.errors import AdapterError, Fault, MergeError
from peftcli.models.structure import structure
from peftcli.models.weights import is_linear, weight_view


class LoraLinear(AdapterLayer):
    """The update of one linear layer (nn.Linear or Conv1D)."""

    def __init__(self, base_layer: nn.Module, r: int, scaling: float, config: LoraConfig) -> None:
        super().__init__(base_layer)
        view = weight_view(unwrapped(base_layer))
        out_features, in_features = view.shape
        self.r = r
        self.scaling = scaling
        self.config = config
        self.lora_A = nn.Parameter(torch.empty(r, in_features, device=view.device))
        self.lora_B = nn.Parameter(torch.empty(out_features, r, device=view.device))
        self.lora_B_bias = nn.Parameter(torch.empty(out_features, device=view.device)) if config.lora_bias else None
        self.dropout = nn.Dropout(config.lora_dropout) if config.lora_dropout else nn.Identity()

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        result: Tensor = self.base_layer(x, *args, **kwargs)
        if not self.enabled:
            return result
        update = F.linear(F.linear(self.dropout(x.to(self.lora_A.dtype)), self.lora_A), self.lora_B, self.lora_B_bias)
        # the sum is taken in the adapter's type and rounded once
        return (result + update * self.scaling).to(result.dtype)

    def tensors(self) -> dict[str, Tensor]:
        named: dict[str, Tensor] = {"lora_A.weight": self.lora_A, "lora_B.weight": self.lora_B}
        if self.lora_B_bias is not None:
            named["lora_B.bias"] = self.lora_B_bias
        return named

    def initialise(self, context: InitContext) -> None:
        with torch.no_grad():
            start_pair(self.lora_A, self.lora_B, self.config.init_lora_weights, self.r, context.generator)
            if self.lora_B_bias is not None:
                self.lora_B_bias.zero_()

    def delta_weight(self) -> Tensor:
        """s B A, float32, (out_features, in_features)."""
        return (self.lora_B.detach().float() @ self.lora_A.detach().float()) * self.scaling

    def merged(self) -> dict[str, Tensor]:
        view = weight_view(unwrapped(self.base_layer))
        new = {"weight": view.stored(view.dense() + self.delta_weight())}
        if self.lora_B_bias is not None:
            if view.bias is None:
                raise MergeError(
                    "`lora_bias` cannot be merged: the base's layers have no bias to hold it",
                    fix="serve the adapter beside its base, or train without lora_bias",
                )
            new["bias"] = view.bias.detach().float() + self.lora_B_bias.detach().float() * self.scaling
        return new


def start_pair(
    lora_a: Tensor, lora_b: Tensor, how: bool | str, r: int, generator: torch.Generator
) -> None:
    """Start values of a pair (A (r, in), B (out, r)); drawn on the CPU so that every device starts alike."""
    if how == "gaussian":
        lora_a.copy_(torch.empty(lora_a.shape).normal_(0.0, 1.0 / r, generator=generator))
        lora_b.zero_()
        return
    lora_a.copy_(kaiming_uniform(lora_a.shape, generator))
    if how:
        lora_b.zero_()
    else:
        lora_b.copy_(kaiming_uniform(lora_b.shape, generator))


def kaiming_uniform(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): what nn.Linear draws (Kaiming with a = sqrt(5))."""
    bound = 1.0 / math.sqrt(shape[1])
    return torch.empty(tuple(shape)).uniform_(-bound, bound, generator=generator)


class LoraEmbedding(AdapterLayer):
    """The update of an embedding: rows of A are looked up, then mapped by B."""

    def __init__(self, base_layer: nn.Module, r: int, scaling: float, config: LoraConfig) -> None:
        super().__init__(base_layer)
        view = weight_view(unwrapped(base_layer))
        num_embeddings, embedding_dim = view.shape
        self.r = r
        self.scaling = scaling
        self.config = config
        self.lora_embedding_A = nn.Parameter(torch.empty(r, num_embeddings, device=view.device))
        self.lora_embedding_B = nn.Parameter(torch.empty(embedding_dim, r, device=view.device))

    def forward(self, ids: Tensor) -> Tensor:
        result: Tensor = self.base_layer(ids)
        if not self.enabled:
            return result
        update = F.embedding(ids, self.lora_embedding_A.T) @ self.lora_embedding_B.T
        # some families scale what they look up (Gemma): the update is part of the looked-up row
        embed_scale = getattr(unwrapped(self.base_layer), "embed_scale", None)
        if embed_scale is not None:
            update = update * embed_scale
        return (result + update * self.scaling).to(result.dtype)

    def tensors(self) -> dict[str, Tensor]:
        return {"lora_embedding_A": self.lora_embedding_A, "lora_embedding_B": self.lora_embedding_B}

    def initialise(self, context: InitContext) -> None:
        with torch.no_grad():
            self.lora_embedding_A.zero_()
            shape = self.lora_embedding_B.shape
            self.lora_embedding_B.copy_(torch.empty(shape).normal_(generator=context.generator))

    def merged(self) -> dict[str, Tensor]:
        base = weight_view(unwrapped(self.base_layer)).dense()
        delta = self.lora_embedding_A.detach().float().T @ self.lora_embedding_B.detach().float().T
        return {"weight": base + delta * self.scaling}


class LoraAdapter(LayersAdapter):
    """Adds what LoRA's files say beyond the pairs: resolved targets and patterns, optional copies of embeddings."""

    config: LoraConfig

    def entries(self) -> list[Entry]:
        return super().entries() + self._embedding_copies()

    def _embedding_copies(self) -> list[Entry]:
        """The reference writes the whole base embedding beside an adapted one; read and compared, not written anew."""
        roles = {id(module) for module in _embedding_modules(self.model)}
        return [
            Entry(f"{FILE_PREFIX}{path}.base_layer.weight", unwrapped(layer).weight, optional=True, fixed=True)
            for path, layer in self.layers
            if isinstance(layer, LoraLinear | LoraEmbedding) and id(unwrapped(layer)) in roles
        ]

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        return {entry.key: entry.tensor for entry in self.entries() if entry.trainable}  # type: ignore[misc]

    def state(self) -> dict[str, Tensor]:
        return {entry.key: entry.tensor.detach() for entry in self.entries() if not entry.fixed}

    def file_config(self) -> LoraConfig:
        adapted = [path for path, layer in self.layers if isinstance(layer, LoraLinear | LoraEmbedding)]
        changes: dict[str, object] = {}
        if self.config.target_modules == "all-linear":
            changes["target_modules"] = shortest_names(adapted, self.model)
        for field in ("rank_pattern", "alpha_pattern"):
            pattern = getattr(self.config, field)
            stable = order_free(pattern, adapted)
            if stable != pattern:
                changes[field] = stable
        return self.config.model_copy(update=changes)


def _embedding_modules(model: nn.Module) -> list[nn.Module]:
    found = [model.get_input_embeddings()] if hasattr(model, "get_input_embeddings") else []
    if hasattr(model, "get_output_embeddings"):
        found.append(model.get_output_embeddings())
    return [unwrapped(module) for module in found if module is not None]


def shortest_names(paths: Sequence[str], model: nn.Module) -> list[str]:
    """Leaf names when they name exactly these paths in the whole model, else the paths; sorted, so files repeat."""
    leaves = sorted({path.rsplit(".", 1)[-1] for path in paths})
    named = {path for path, module in named_base_modules(model) if path and path.rsplit(".", 1)[-1] in leaves}
    return leaves if named == set(paths) else sorted(paths)


def order_free(pattern: Mapping[str, int | float], paths: Sequence[str]) -> dict[str, int | float]:
    """The pattern, or whole paths in its place when its meaning hangs on the order of its keys (JSON sorts them)."""
    by_order = {path: pattern_value(pattern, path, None) for path in paths}
    by_name = {path: pattern_value(dict(sorted(pattern.items())), path, None) for path in paths}
    if by_order == by_name:
        return dict(pattern)
    return {path: value for path, value in by_order.items() if value is not None}


class Lora(LayersMethod[LoraConfig]):
    """Finds the targets and wraps each."""

    config_class = LoraConfig

    def new_adapter(self, model: nn.Module, config: LoraConfig) -> LoraAdapter:
        return LoraAdapter(model, config)

    def sites(self, model: nn.Module, config: LoraConfig, shapes: Shapes | None) -> Mapping[str, nn.Module]:
        candidates = dict(named_base_modules(model))
        kept = config.modules_to_save or []
        supported = {
            path: module for path, module in candidates.items() if is_linear(module) or isinstance(module, nn.Embedding)
        }
        found = find_targets(
            candidates,
            config.target_modules,
            all_linear=structure(model).linears,
            exclude_modules=config.exclude_modules,
            layers_to_transform=config.layers_to_transform,
            layers_pattern=config.layers_pattern,
            supported=supported,
        )
        sites = {path: module for path, module in found.items() if not any(_inside(path, name) for name in kept)}
        self._check(config, sites, shapes)
        return sites

    def _check(self, config: LoraConfig, sites: Mapping[str, nn.Module], shapes: Shapes | None) -> None:
        faults = [
            Fault(f"`{key}` in {field} matches no adapted layer", fix="name the end of a layer's path")
            for field in ("rank_pattern", "alpha_pattern")
            for key in unmatched_pattern_keys(getattr(config, field), sites)
        ]
        for path, module in sites.items():
            r = rank_of(config, path)
            limit = min(weight_view(module).shape)
            if shapes is None and r > limit:
                faults.append(Fault(f"r = {r} is larger than `{path}` allows ({limit})", fix=f"use r <= {limit}"))
            if shapes is not None:
                faults += _rank_faults(path, module, r, shapes)
        if faults:
            raise AdapterError("the ranks do not fit the model", faults=faults[:10])

    def place(
        self, adapter: LayersAdapter, config: LoraConfig, path: str, module: nn.Module, shapes: Shapes | None
    ) -> None:
        if config.bias != "none" and getattr(module, "bias", None) is not None:
            selected = SelectedParameters(module, ["bias"])
            adapter.wrap(path, selected)
            module = selected
        adapter.wrap(path, self.layer(config, path, module, shapes))
        if weight_view(unwrapped(module)).transposed:
            adapter.kept_fields["fan_in_fan_out"] = True

    def layer(self, config: LoraConfig, path: str, module: nn.Module, shapes: Shapes | None) -> AdapterLayer:
        r = rank_of(config, path)
        alpha = pattern_value(config.alpha_pattern, path, config.lora_alpha)
        scaling = alpha / math.sqrt(r) if config.use_rslora else alpha / r
        kind = LoraEmbedding if isinstance(unwrapped(module), nn.Embedding) else LoraLinear
        return kind(module, r, scaling, config)

    def finish(self, adapter: LayersAdapter, config: LoraConfig, shapes: Shapes | None) -> None:
        adapted = set(adapter.targets())
        if config.bias == "all":
            for path, module in list(named_base_modules(adapter.model)):
                if path not in adapted and isinstance(module._parameters.get("bias"), nn.Parameter):
                    adapter.wrap(path, SelectedParameters(module, ["bias"]))
        unmatched = wrap_named_modules(adapter, config.modules_to_save or [])
        # a file of the reference lists every name that a head may have; ours must all be there
        if unmatched and shapes is None:
            raise AdapterError(
                "modules_to_save names modules that this model does not have",
                faults=[Fault(f"`{name}` matches nothing") for name in unmatched],
            )
        adapter.absent_keys = frozenset(entry.key for entry in adapter.entries() if entry.fixed)


def rank_of(config: LoraConfig, path: str) -> int:
    """Rank of one layer after `rank_pattern`."""
    return int(pattern_value(config.rank_pattern, path, config.r))


def _rank_faults(path: str, module: nn.Module, r: int, shapes: Shapes) -> list[Fault]:
    """A rank that the file's tensors contradict, found before anything of that size is allocated."""
    suffix = "lora_embedding_A" if isinstance(module, nn.Embedding) else "lora_A.weight"
    shape = shapes.get(f"{FILE_PREFIX}{path}.{suffix}")
    if shape is not None and shape[0] != r:
        return [Fault(f"adapter_config.json gives `{path}` rank {r}, its tensors have {shape[0]}")]
    if shape is None and r > min(weight_view(module).shape):
        return [Fault(f"`{FILE_PREFIX}{path}.{suffix}` is missing")]
    return []


def _inside(path: str, name: str) -> bool:
    return path == name or path.endswith("." + name) or f".{name}." in f".{path}."


METHOD = Lora()
