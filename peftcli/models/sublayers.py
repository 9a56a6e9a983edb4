"""Attention and feed-forward sublayers of each block, found by structure, and the residual stream around them.

A block adds what its sublayers compute to a residual stream: x + f(norm(x)) (pre-norm) or norm(x + f(x)) (post-norm).
Adapter layers act on a sublayer's output and need x itself. `ResidualTap` watches one block run and knows x: which norm
was called last, and whether norms come before or after sublayers, is seen from the tensors that pass, not from names of
model classes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from peftcli.models.experts import ROUTER
from peftcli.models.structure import is_norm, structure
from peftcli.models.weights import is_linear

_ATTENTION = re.compile(r"att(entio)?n", re.IGNORECASE)
_CROSS = re.compile(r"cross|encdec|enc_dec|encoder_att", re.IGNORECASE)

Role = Literal["attention", "feed_forward"]
"""Which half of a transformer block a part is."""


@dataclass(frozen=True)
class Sublayer:
    """One sublayer: its last linear layer, whose output goes to the residual stream.

    A mixture of experts has no last linear layer: `output_path` is then the whole feed-forward module.
    """

    block_path: str
    role: Role
    output_path: str
    output: nn.Module
    next_norm: nn.Module | None
    """The norm that follows in the block, in order of definition; the one around the sum in post-norm blocks."""


def sublayers(model: nn.Module) -> list[Sublayer]:
    """The self-attention and feed-forward sublayers of every block, in order."""
    return [found for path, block in structure(model).blocks.items() for found in _of_block(path, block)]


def _of_block(block_path: str, block: nn.Module) -> list[Sublayer]:
    named = [(path, module) for path, module in block.named_modules() if path]
    # cross-attention gets none: AdapterHub leaves it alone as well, unless `cross_adapter` is set
    attention = [path for path, m in named if is_linear(m) and _ATTENTION.search(path) and not _CROSS.search(path)]
    feed_forward = [path for path, m in named if is_linear(m) and not _ATTENTION.search(path)]
    experts = _experts_module(named)
    found: list[tuple[Role, str]] = []
    if attention:
        # families define the output projection after those of queries, keys and values
        found.append(("attention", attention[-1]))
    if experts is not None:
        found.append(("feed_forward", experts))
    elif feed_forward:
        found.append(("feed_forward", feed_forward[-1]))
    return [
        Sublayer(block_path, role, f"{block_path}.{path}", block.get_submodule(path), _next_norm(named, path))
        for role, path in found
    ]


def _experts_module(named: list[tuple[str, nn.Module]]) -> str | None:
    """The module that routes to experts: it holds a router and many experts, fused or listed."""
    for path, module in named:
        names = {name for name, _ in module.named_children()}
        if "experts" in names and any(ROUTER.fullmatch(name) for name in names):
            return path
    return None


def _next_norm(named: list[tuple[str, nn.Module]], path: str) -> nn.Module | None:
    order = [other for other, _ in named]
    return next((module for _, module in named[order.index(path) + 1 :] if is_norm(module)), None)


def stream_norms(model: nn.Module) -> dict[str, nn.Module]:
    """Every norm on the residual stream, in the model's order: those of queries and keys inside attention are not."""
    found = structure(model)
    inside = {
        f"{path}.{name}": _is_stream_norm(block, module)
        for path, block in found.blocks.items()
        for name, module in block.named_modules()
        if is_norm(module)
    }
    return {path: norm for path, norm in found.norms.items() if inside.get(path, True)}


class ResidualTap:
    """Hooks on one block that know the residual stream at any moment of its forward pass."""

    def __init__(self, block: nn.Module) -> None:
        self._residual: Tensor | None = None
        self._block_input: Tensor | None = None
        self.post_norm = False
        """Known once the block has run up to its first sublayer: whether norms come after the sum."""
        self._seen_norm = False
        self._handles = [block.register_forward_pre_hook(self._enter, with_kwargs=True, prepend=True)]
        for module in block.modules():
            if is_norm(module) and _is_stream_norm(block, module):
                self._handles.append(module.register_forward_hook(self._norm_called))

    def remove(self) -> None:
        """Takes the hooks away."""
        for handle in self._handles:
            handle.remove()

    @property
    def residual(self) -> Tensor:
        """What the running sublayer's output will be added to, (batch, seq, hidden)."""
        assert self._residual is not None, "asked outside the block's forward pass"
        return self._residual

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found = args[0] if args else kwargs["hidden_states"]
        self._block_input = self._residual = found
        self._seen_norm = False

    def _norm_called(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if not self._seen_norm:
            # the first norm of a pre-norm block sees the block's very input
            self.post_norm = args[0] is not self._block_input
            self._seen_norm = True
        self._residual = output if self.post_norm else args[0]


def _is_stream_norm(block: nn.Module, norm: nn.Module) -> bool:
    """Whether a norm works on the residual stream: norms inside attention (of queries and keys) or inside a mixer, on
    the way to its last linear layer, do not."""
    # by identity: a path that two modules share would be ambiguous by name
    path = next(path for path, module in block.named_modules() if module is norm)
    holder, _, name = path.rpartition(".")
    parents = holder.split(".") if holder else []
    inside_attention = any(_ATTENTION.search(part) for part in parents)
    if inside_attention:
        # BERT keeps the norm of the sum in `attention.output`: not within the module that computes attention
        return len(parents) >= 2 and parents[-1] == "output"
    return not parents or not _is_on_the_way(block.get_submodule(holder), name)


def _is_on_the_way(holder: nn.Module, name: str) -> bool:
    """Whether a norm lies between linear layers of its own part: one stands after it, or several around it (the norms of
    Jamba's mixer). A part that ends in `dense` and a norm of the sum has one before it alone."""
    names = list(holder._modules)
    linears = [child for child, module in holder.named_children() if is_linear(module)]
    return len(linears) > 1 or any(names.index(child) > names.index(name) for child in linears)
