"""Regional compilation: each layer of the model becomes one compiled function, which all layers that are alike share.

Only the training passes run compiled. Evaluation, generation and the comparisons with the adapter switched off change
caches, modes and switches, each of which would be compiled anew, for a few passes each.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from peftcli.errors import DeviceError, PeftcliError
from peftcli.models.device import is_out_of_memory, kind_of

VARIANTS = 64
"""How many forms of one layer's code are kept: layers of several kinds, with and without an adapter, share the code.
torch's own limit of 8 is passed by a model of three kinds; what is beyond it would run uncompiled without a word."""
BACKEND: Any = "inductor"
"""What makes code of a graph, in torch's words."""
_FIX = "set training.compile: false"


@dataclass
class Compiled:
    """What was compiled while a context lasted."""

    layers: int
    """Layers whose training passes run compiled."""
    graphs: int = 0
    """Functions that were compiled for them."""
    breaks: int = 0
    """Places where a layer could not be followed and runs in pieces."""

    def told(self) -> str:
        """One line for the record."""
        pieces = f", {self.breaks} breaks" if self.breaks else ""
        return f"{self.layers} layers in {self.graphs} graphs{pieces}"


@contextlib.contextmanager
def compiled_blocks(blocks: Sequence[nn.Module], wanted: bool) -> Iterator[Compiled | None]:
    """Inside the context the blocks' training passes run compiled, for any number of rows and tokens.

    Yields what was compiled, complete when the context ends; None where it is not wanted.
    """
    if not wanted:
        yield None
        return
    import torch._dynamo  # seconds of imports that only a compiled run pays

    before = [vars(block).get("forward") for block in blocks]
    compiled = Compiled(layers=len(blocks))
    counters = torch._dynamo.utils.counters
    graphs, breaks = _counts(counters)
    with torch._dynamo.config.patch(recompile_limit=VARIANTS, accumulated_recompile_limit=VARIANTS * 4):
        for block in blocks:
            block.forward = _in_training(block, block.forward)
        try:
            yield compiled
        finally:
            now = _counts(counters)
            compiled.graphs, compiled.breaks = now[0] - graphs, now[1] - breaks
            for block, forward in zip(blocks, before, strict=True):
                del block.forward
                if forward is not None:
                    block.forward = forward


def _counts(counters: Any) -> tuple[int, int]:
    """Graphs that torch compiled in this process, and breaks that it met."""
    return counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())


def _in_training(block: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    fast = torch.compile(forward, dynamic=True, backend=BACKEND)

    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not (block.training and torch.is_grad_enabled()):
            return forward(*args, **kwargs)
        try:
            return fast(*args, **kwargs)
        except PeftcliError:
            raise
        except Exception as error:
            # what the layer itself raises stays: only a failure of the compiler is told as one
            if is_out_of_memory(error) or not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            raise DeviceError(f"a layer could not be compiled: {_first_line(error)}", fix=_FIX) from error

    return run


def _first_line(error: Exception) -> str:
    """What went wrong, of an error whose own first lines say where."""
    error = getattr(error, "inner_exception", error)
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def require_compiler(device: str) -> None:
    """Raises `DeviceError` where torch finds nothing to compile with: a C++ compiler for a CPU, Triton for a GPU."""
    if kind_of(device) == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler as error:
            raise DeviceError(
                "training.compile needs a C++ compiler, and there is none", fix=f"install g++, or {_FIX}"
            ) from error
