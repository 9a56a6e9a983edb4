"""LLaMA-Adapter (arXiv:2303.16199, section 3.2): zero-initialised attention to a prompt in each of the last layers.

    y = attention(x) + W_o (g softmax(q K_p^T / sqrt(d)) V_p)        K_p = W_k P, V_p = W_v P, q as in the attention

The queries are the layer's own, rotated; keys of the prompt are not. g starts at zero: the method starts as the base.
Where queries, keys and values come from one layer (GPT-2), W_o is left out, as in the reference.
Shapes: P (1, adapter_len, hidden), g (1,). Keys: `P.adaption_prompt`, `P.adaption_gate`, P the path of the attention.
Compared with peft 0.21.2.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from peftcli.adapters.base import FILE_PREFIX, InitContext, Shapes, cannot_merge
from peftcli.adapters.base_modules import named_base_modules
from peftcli.adapters.layers import AdapterLayer
from peftcli.adapters.layers_method import LayersAdapter, LayersMethod
from peftcli.adapters.methods.adaption_prompt.config import AdaptionPromptConfig
from peftcli.adapters.prompts import check_shape
from peftcli.adapters.targets import find_targets, names_path
from peftcli.errors import AdapterError
from peftcli.models.structure import hidden_size, structure
from peftcli.models.weights import weight_view

_OUTPUT_NAMES = ("o_proj", "out_proj", "dense", "c_proj")
_ROTATION = ["q", "k", "cos", "sin"]


class PromptedAttention(AdapterLayer):
    """An attention with a prompt of its own beside what it attends to."""

    def __init__(self, base_layer: nn.Module, adapter_len: int, width: int) -> None:
        super().__init__(base_layer)
        device = next(base_layer.parameters()).device
        self.adaption_prompt = nn.Parameter(torch.empty(1, adapter_len, width, device=device))
        self.adaption_gate = nn.Parameter(torch.empty(1, device=device))

    def adapted(self, *args: Any, **kwargs: Any) -> Any:
        """attention(x) + W_o (g softmax(q K_p^T / sqrt(d)) V_p), (batch, length, hidden)."""
        result = self.base_layer(*args, **kwargs)
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        positions = kwargs.get("position_embeddings")
        added = self._from_prompt(hidden, positions)
        if isinstance(result, tuple):
            return (result[0] + added, *result[1:])
        return result + added

    def _from_prompt(self, hidden: Tensor, positions: tuple[Tensor, Tensor] | None) -> Tensor:
        base = self.base_layer
        query = self._by_head(self._project(hidden, 0), "q_norm")
        if positions is not None:
            query = _rotated(base, query, *positions)
        prompt = self.adaption_prompt.to(hidden.dtype)
        keys = self._by_head(self._project(prompt, 1), "k_norm")
        values = self._by_head(self._project(prompt, 2))
        # queries share keys and values: each of these is repeated for its group
        shared = query.shape[1] // keys.shape[1]
        keys, values = keys.repeat_interleave(shared, dim=1), values.repeat_interleave(shared, dim=1)
        # (batch, heads, length, adapter_len)
        # in float32, as attention itself computes its softmax
        scores = torch.softmax(query @ keys.transpose(2, 3) * _scaling(base), dim=-1, dtype=torch.float32)
        found = (self.adaption_gate * scores).to(hidden.dtype) @ values
        found = found.transpose(1, 2).reshape(*hidden.shape[:-1], -1)
        # GPT-2's projection comes after both parts in the reference, so it is left out here
        if "c_attn" in base._modules:
            return found
        output: Tensor = _output(base)(found)
        # the attention itself has added its bias already
        bias = weight_view(_output(base)).bias
        return output if bias is None else output - bias

    def _project(self, states: Tensor, part: int) -> Tensor:
        """Queries (part 0), keys (1) or values (2) of states, heads side by side."""
        fused = self.base_layer._modules.get("c_attn")
        if fused is not None:
            split: Tensor = fused(states).chunk(3, dim=-1)[part]
            return split
        projected: Tensor = self.base_layer.get_submodule(("q_proj", "k_proj", "v_proj")[part])(states)
        return projected

    def _by_head(self, states: Tensor, norm: str | None = None) -> Tensor:
        """(batch, length, heads x d) -> (batch, heads, length, d), normed as the family does it: head by head, or all
        heads at once before they part (OLMo 2), as the norm's width shows."""
        normed = self.base_layer._modules.get(norm) if norm is not None else None
        width = int(self.base_layer.head_dim)  # type: ignore[arg-type]
        if normed is not None and next(normed.parameters()).shape[-1] != width:
            states, normed = normed(states), None
        states = states.view(*states.shape[:-1], -1, width)
        return (states if normed is None else normed(states)).transpose(1, 2)

    def tensors(self) -> dict[str, Tensor]:
        return {"adaption_prompt": self.adaption_prompt, "adaption_gate": self.adaption_gate}

    def initialise(self, context: InitContext) -> None:
        """P normal, g zero."""
        with torch.no_grad():
            self.adaption_prompt.copy_(torch.randn(self.adaption_prompt.shape, generator=context.generator))
            self.adaption_gate.zero_()

    def merged(self) -> dict[str, Tensor]:
        """Raises `MergeError`."""
        raise cannot_merge("adaption_prompt", "what it adds depends on every token, no weight can stand for it")


def _output(attention: nn.Module) -> nn.Module:
    return next(attention.get_submodule(name) for name in _OUTPUT_NAMES if name in attention._modules)


def _scaling(attention: nn.Module) -> float:
    # most families state their scaling; the others divide by the root of the width
    found: Any = attention.__dict__.get("scaling")
    return float(found) if isinstance(found, float) else float(attention.head_dim) ** -0.5  # type: ignore[arg-type]


def _rotated(attention: nn.Module, query: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries rotated as the family does it; where cos is narrower than a head, only that part.

    Some families give one angle for each pair of dimensions (gpt-oss): cos then has half the width of what it rotates.
    """
    rotate, width = _rotation(attention), cos.shape[-1]
    if not _takes_width(rotate, width):
        width *= 2
    part, rest = query[..., :width], query[..., width:]
    return torch.cat([rotate(part, part, cos, sin)[0], rest], dim=-1)


@functools.cache
def _takes_width(rotate: Callable[..., tuple[Tensor, Tensor]], width: int) -> bool:
    """Whether a rotation takes queries as wide as its angles; asked with tensors that hold nothing."""
    query, angles = torch.empty(1, 1, 1, width, device="meta"), torch.empty(1, 1, width, device="meta")
    try:
        return rotate(query, query, angles, angles)[0].shape == query.shape
    except RuntimeError:
        return False


def _rotation(attention: nn.Module) -> Callable[..., tuple[Tensor, Tensor]]:
    found: Any = getattr(sys.modules[type(attention).__module__], "apply_rotary_pos_emb", None)
    # by the names of its arguments: another order of them would rotate by the wrong angles
    if found is None or list(inspect.signature(found).parameters)[:4] != _ROTATION:
        raise AdapterError(
            f"{type(attention).__name__} rotates its queries in a way that adaption_prompt does not know",
            fix="use prefix_tuning, which does not touch queries",
        )
    rotate: Callable[..., tuple[Tensor, Tensor]] = found
    return rotate


class AdaptionPrompt(LayersMethod[AdaptionPromptConfig]):
    """Wraps the attentions of the last layers."""

    config_class = AdaptionPromptConfig

    def sites(self, model: nn.Module, config: AdaptionPromptConfig, shapes: Shapes | None) -> Mapping[str, nn.Module]:
        """The attentions of the last `adapter_layers` blocks that it can adapt, by path."""
        supported = dict(_attentions(model))
        if not supported:
            raise AdapterError(
                "adaption_prompt needs attentions with q_proj, k_proj and v_proj (or c_attn); this model has none",
                fix="use prefix_tuning, which works with every model that has a cache",
            )
        wanted = config.target_modules
        found = {path: module for path, module in supported.items() if wanted is None or names_path(wanted, path)}
        if wanted is not None and not found:
            modules = dict(named_base_modules(model))
            return find_targets(modules, [wanted], all_linear=(), supported=supported)
        count = len(found) if config.adapter_layers is None else config.adapter_layers
        if count > len(found):
            raise AdapterError(
                f"adapter_layers is {count}, the model has {len(found)} such layers", fix=f"use at most {len(found)}"
            )
        # the last of them: the paper adapts the topmost layers, whose features are the most abstract
        return dict(list(found.items())[-count:])

    def layer(
        self, config: AdaptionPromptConfig, path: str, module: nn.Module, shapes: Shapes | None
    ) -> PromptedAttention:
        """The attention with a prompt (1, adapter_len, width of its output)."""
        width = weight_view(_output(module)).shape[0]
        check_shape(f"{FILE_PREFIX}{path}.adaption_prompt", (1, config.adapter_len, width), shapes)
        return PromptedAttention(module, config.adapter_len, width)

    def new_adapter(self, model: nn.Module, config: AdaptionPromptConfig) -> LayersAdapter:
        return AdaptionPromptAdapter(model, config)


class AdaptionPromptAdapter(LayersAdapter):
    """Says in the file which layers were meant."""

    config: AdaptionPromptConfig

    def file_config(self) -> AdaptionPromptConfig:
        """With the attention's name and the number of layers, which the reference looks for."""
        names = {path.rsplit(".", 1)[-1] for path in self.targets()}
        changes = {"target_modules": self.config.target_modules or min(names), "adapter_layers": len(self.layers)}
        return self.config.model_copy(update=changes)


def _attentions(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Self-attentions of a decoder whose queries, keys and values can be had apart, in the model's order."""
    width, blocks = hidden_size(model), structure(model).blocks
    found = []
    for path, module in named_base_modules(model):
        names = set(module._modules)
        apart = {"q_proj", "k_proj", "v_proj"} <= names or "c_attn" in names
        inside = any(path.startswith(f"{block}.") for block in blocks)
        if not (apart and inside and getattr(module, "is_causal", False) and names & set(_OUTPUT_NAMES)):
            continue
        if weight_view(_output(module)).shape[0] == width:
            found.append((path, module))
    return found


METHOD = AdaptionPrompt()
