"""Weights that a model multiplies with itself, past the layer that owns them, read from the model's own source.

A layer that is never called cannot be wrapped: `F.linear(x, self.proj.weight)`, `self.dt_proj.weight @ steps`, the
output projection of `nn.MultiheadAttention`. Where no source can be read, nothing is said here; the weights that
wrappers give away refuse to be computed with (`models.weights`), so that what is missed here stops at the first pass.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CodeType
from typing import Any

from torch import nn

_PRODUCTS = frozenset({"linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "einsum", "embedding", "dot", "mv"})
_FACTS = frozenset({"device", "dtype", "shape", "size", "dim", "ndim", "data_ptr", "is_meta", "requires_grad", "numel"})
_ASKS = frozenset({"hasattr", "getattr", "isinstance", "type", "id"})
_SETTING_UP = ("__init__", "_init", "init_", "reset_", "_reset", "extra_repr", "__repr__", "tie_", "_tie")


@dataclass(frozen=True)
class Reads:
    """Chains of attributes under `self` (`proj`, `mlp.gate`) whose weights a class computes with."""

    multiplied: frozenset[str] = frozenset()
    """The weight is an operand of a product."""
    handed_on: frozenset[str] = frozenset()
    """The weight is used as a tensor in any way."""


def read_directly(model: nn.Module) -> dict[str, str]:
    """Path of each module whose weight the model computes with past its forward -> what reads it there.

    A module that is called and whose weight is only handed to another function on some other path (fused kernels) is
    not among them: which path runs is seen when it runs.
    """
    modules = dict(model.named_modules())
    multiplied: dict[str, str] = {}
    handed_on: dict[str, str] = {}
    for path, module in modules.items():
        kind: Any = type(module)
        reads = reads_of(kind)
        for chains, into in ((reads.multiplied, multiplied), (reads.handed_on, handed_on)):
            for name in (f"{path}.{chain}" if path else chain for chain in chains):
                if name in modules:
                    into.setdefault(name, type(module).__name__)
    if not handed_on:
        return {}
    kinds: dict[str, Any] = {path: type(module) for path, module in modules.items()}
    # asked only where something is handed on: the sources of all classes are read for it
    called = {f"{path}.{chain}" if path else chain for path, kind in kinds.items() for chain in calls_of(kind)}
    return multiplied | {path: reader for path, reader in handed_on.items() if path not in called}


@functools.cache
def reads_of(kind: type[nn.Module]) -> Reads:
    """What the methods of a class do with the weights of its children; nothing where the source cannot be read."""
    uses = [use for method in _methods(kind) if _mentions_weight(method.__code__) for use in _uses(method)]
    weights = [use for use in uses if use.chain.endswith(".weight")]
    return Reads(
        # asked first, for parsing is dear and most methods name no weight at all
        multiplied=frozenset(use.chain.removesuffix(".weight") for use in weights if use.is_factor),
        handed_on=frozenset(use.chain.removesuffix(".weight") for use in weights),
    )


@functools.cache
def calls_of(kind: type[nn.Module]) -> frozenset[str]:
    """Chains under `self` that a class calls, or hands to somebody who may call them."""
    uses = (use for method in _methods(kind) for use in _uses(method))
    return frozenset(use.chain for use in uses if not use.chain.endswith(".weight"))


def _mentions_weight(code: CodeType) -> bool:
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return "weight" in code.co_names or any(map(_mentions_weight, inner))


@dataclass(frozen=True)
class _Use:
    chain: str
    is_factor: bool


def _uses(method: Callable[..., Any]) -> Iterator[_Use]:
    """Every longest chain of attributes under `self` in a method that is more than looked at."""
    tree = _parsed(method)
    if tree is None:
        return
    # `ast` knows children only
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        chain = _chain(node)
        if chain is not None and not isinstance(parents[node], ast.Attribute) and not _is_asked(node, parents):
            yield _Use(chain, _is_factor(node, parents))


def _methods(kind: Any) -> Iterator[Callable[..., Any]]:
    """Methods as the class resolves them, without those that set it up."""
    hidden: set[str] = set()
    for owner in kind.__mro__:
        if owner is nn.Module:
            return
        for name, value in vars(owner).items():
            # unwrapped: decorators of transformers (deprecated arguments, kernels) hide the source of what runs
            function = inspect.unwrap(getattr(value, "__func__", value)) if callable(value) else None
            if name in hidden or name.startswith(_SETTING_UP) or not inspect.isfunction(function):
                continue
            # a method that calls `super` runs its parent's as well, so both are read
            if "super" not in function.__code__.co_names:
                hidden.add(name)
            yield function


def _parsed(method: Callable[..., Any]) -> ast.Module | None:
    try:
        # a class that was made in a prompt or by a compiler has no source, and an indented one may not parse alone
        return ast.parse(textwrap.dedent(inspect.getsource(method)))
    except (OSError, TypeError, SyntaxError, ValueError):
        return None


def _chain(node: ast.AST) -> str | None:
    """`a.b.weight` of `self.a.b.weight`, None for anything else that is not a longest chain of attributes."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    if not names or not (isinstance(node, ast.Name) and node.id == "self"):
        return None
    names.reverse()
    if "weight" in names:
        place = names.index("weight") + 1
        # its type or device is no use of it; what is made of it (`.T`, `.to`) is
        return None if names[place : place + 1] and names[place] in _FACTS else ".".join(names[:place])
    # `self.a.forward(x)` calls `a` as much as `self.a(x)` does
    return ".".join(names[:-1] if names[-1] == "forward" else names) or None


def _is_asked(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> bool:
    """Whether an expression is only compared, or looked at by `hasattr` and the like."""
    parent = parents[node]
    if isinstance(parent, ast.Call) and isinstance(parent.func, ast.Name) and parent.func.id in _ASKS:
        return True
    return isinstance(parent, ast.Compare | ast.If | ast.IfExp | ast.BoolOp | ast.UnaryOp)


def _is_factor(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> bool:
    """Whether an expression is an operand of a product, also turned round or converted on the way there."""
    parent = parents[node]
    # `.T`, `.to(x.dtype)` and the like leave it the same operand
    while isinstance(parent, ast.Attribute) or (isinstance(parent, ast.Call) and parent.func is node):
        node, parent = parent, parents[parent]
    if isinstance(parent, ast.keyword):
        parent = parents[parent]
    if isinstance(parent, ast.BinOp):
        return isinstance(parent.op, ast.MatMult)
    if isinstance(parent, ast.Call) and node is not parent.func:
        name = parent.func.attr if isinstance(parent.func, ast.Attribute) else getattr(parent.func, "id", "")
        return name in _PRODUCTS
    return False
