"""The wrapper of a module: it stands in the module's place, holds it, and answers for it."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from peftcli.adapters.base import InitContext
from peftcli.models.weights import UnadaptedWeight


class AdapterLayer(nn.Module):
    """Stands in a module's place and holds it as `base_layer`; never edits it.

    Attributes of the base layer (`weight`, `bias`, `in_features`, `layer_idx`) are reachable through the wrapper, since
    models read them; inside a forward pass its parameters are to look at only while the adapter is on, since computing
    with them would pass by it.
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.enabled = True
        self.path = ""
        """Path of the base layer in the bare model, once the wrapper stands there."""
        self.training = base_layer.training

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            # past wrappers in between: their attributes are their own
            base_layer = super().__getattr__("base_layer")
            assert isinstance(base_layer, nn.Module)
            value = getattr(unwrapped(base_layer), name)
            if isinstance(value, nn.Parameter) and self.enabled and _inside_a_forward():
                return self.shown(name, value)
            return value

    def shown(self, name: str, parameter: nn.Parameter) -> Tensor:
        """What a forward pass of the model sees as a parameter of the base layer while the adapter is on.

        Around a part with layers of its own (a block) the parameters are no business of the wrapper.
        """
        is_leaf = not any(True for _ in unwrapped(self).children())
        return UnadaptedWeight.of(parameter, self.path) if is_leaf else parameter

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What stands in the base layer's place answers: `adapted`, or the base layer itself while switched off."""
        return self.adapted(*args, **kwargs) if self.enabled else self.base_layer(*args, **kwargs)

    @abstractmethod
    def adapted(self, *args: Any, **kwargs: Any) -> Any:
        """The answer with the adapter on, from the inputs that the model gives the base layer; it calls `base_layer`
        itself, with every argument, and returns what that returns (type and shape included)."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Name after the module path on disk (`lora_A.weight`) -> live tensor; parameters are trained, others not."""

    @abstractmethod
    def initialise(self, context: InitContext) -> None:
        """Start values, drawn from `context.generator` only."""

    @abstractmethod
    def merged(self) -> dict[str, Tensor]:
        """New float32 values of the base layer's parameters, by their name there, in the layout stored there.

        Raises `MergeError` when this layer has no weight-space form.
        """

    def low_rank_update(self) -> tuple[Tensor, Tensor] | None:
        """(L (out, r), R (r, in)) whose product is all that the layer changes, scaling included; None where the
        change has another form. What is asked of `merged()` costs a matrix of the weight's size."""
        return None

    def update_scale(self) -> float:
        """What a low-rank update is multiplied by, for who needs its factors without it; 1 where nothing is."""
        return 1.0

    def kernels(self) -> frozenset[str]:
        """Names of the fast paths that the layer takes in training where they are on; none for most."""
        return frozenset()

    def extra_repr(self) -> str:
        return f"enabled={self.enabled}"


def _inside_a_forward() -> bool:
    """Whether some module is being called: who reads a parameter from outside wants the base's.

    While torch compiles there is no such stack, and the parameter is the base's too.
    """
    if torch.compiler.is_compiling():
        return False
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code is _CALL:
            return True
        frame = frame.f_back
    return False


_CALL = nn.Module._call_impl.__code__
"""The code that runs every module's forward, read once: an AttributeError here where torch no longer has it."""


class AdapterPart(nn.Module):
    """A module of an adapter that hangs on the model beside the base's own modules."""


class StandInBlocks(nn.ModuleList):
    """Blocks in the place of a model's own list of blocks, which is kept as `bare`."""

    def __init__(self, blocks: Iterable[nn.Module] = (), bare: nn.ModuleList | None = None) -> None:
        super().__init__(blocks)
        self._bare = (bare,)  # in a tuple: kept, not a part of this module

    @property
    def bare(self) -> nn.ModuleList | None:
        """The model's own list; None where it has none."""
        return self._bare[0]


def unwrapped(module: nn.Module) -> nn.Module:
    """The module of the base under any number of wrappers."""
    while isinstance(module, AdapterLayer):
        module = module.base_layer
    return module
