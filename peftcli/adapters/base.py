"""The interface that every method satisfies, and the life cycle that they share.

A method is *built* on a model from its configuration (and, when loading, from the shapes on disk), then either
*initialised* from a generator of its own or *loaded*. One mapping, `entries()`, ties live tensors to keys on disk and
serves saving, loading and checking alike.

    layers      wrap modules (LoRA, bottleneck): `adapters.layers_method`
    prompts     extend the input or the cache (prompt tuning): `adapters.prompts`
    selections  train copies of existing tensors (BitFit): `adapters.selection`
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peftcli.adapters.adapter_file import AdapterFile, Shapes
from peftcli.adapters.config import MethodConfig
from peftcli.adapters.pairs import Pairs, Written
from peftcli.errors import AdapterError, MergeError

__all__ = ["FILE_PREFIX", "Adapter", "Around", "Entry", "InitContext", "Method", "Shapes", "Summary", "cannot_merge"]

Around = Callable[[str, nn.Module], AbstractContextManager[None]]
"""(path, module of the base) -> what is done before and after its merge."""

FILE_PREFIX = "base_model.model."
"""What the reference puts before a module path in its keys."""


@dataclass
class Entry:
    """One tensor: where it lives and how it is written.

    `to_disk`/`from_disk` convert between the live and the stored layout (default: the same).
    `optional` entries may be absent from a file; `fixed` ones are copies of base tensors that a file may carry: they
    are compared with the base when loading instead of being copied.
    """

    key: str
    tensor: Tensor
    to_disk: Callable[[Tensor], Tensor] | None = None
    from_disk: Callable[[Tensor], Tensor] | None = None
    optional: bool = False
    fixed: bool = False

    @property
    def trainable(self) -> bool:
        """Whether an optimizer may move the tensor: a parameter that the method does not hold fixed."""
        return isinstance(self.tensor, nn.Parameter) and not self.fixed

    def stored(self) -> Tensor:
        """The tensor as it is written."""
        value = self.tensor.detach()
        return self.to_disk(value) if self.to_disk else value

    def load(self, value: Tensor) -> None:
        """Takes a tensor as read from disk."""
        with torch.no_grad():
            self.tensor.copy_(self.from_disk(value) if self.from_disk else value)


@dataclass
class InitContext:
    """What an initialisation may use; everything but the generator is optional and asked for by few methods."""

    generator: torch.Generator
    """On the CPU; the method's own stream, so that no other draw depends on it."""
    tokenizer: Any = None
    """The base's tokenizer (starts from text)."""
    batches: Callable[[], Iterable[dict[str, Tensor]]] | None = None
    """Training batches (`input_ids`, `attention_mask`, `weights`) for data-driven starts."""
    loss: Callable[[nn.Module, dict[str, Tensor]], Tensor] | None = None
    """Scalar loss of a batch (gradient-based starts)."""
    original: Callable[[str, bool], Tensor] | None = None
    """Path of a layer, and whether it stood transposed -> its weight before it was quantized, (out, in) float32."""


class Adapter(ABC):
    """The live side of a method on one model. Created by `Method.build`, owned by the model until `remove`."""

    def __init__(self, model: nn.Module, config: MethodConfig) -> None:
        self.model = model
        self.config = config
        self.enabled = True
        self.kept_fields: dict[str, Any] = {}
        """Fields read from a file that the configuration has no use for, written back unchanged."""
        self.kept_notes: dict[str, Any] = {}
        """Notes of our own file, such as how prompts looked in training, written back unchanged."""
        self.read_types: dict[str, torch.dtype] = {}
        """Types that a file's tensors had, by key; written so again while that loses nothing."""
        self.left_out: dict[str, str] = {}
        """Path of each module that the targets could mean and that was not adapted -> why."""
        self.absent_keys: frozenset[str] = frozenset()
        """Optional entries that the loaded file did not carry, left out again when saving."""

    # -- tensors -------------------------------------------------------------------------------------------------

    @abstractmethod
    def entries(self) -> list[Entry]:
        """Every tensor that belongs in the adapter file, live tensor and key on disk, in a fixed order."""

    def file_entries(self) -> list[Entry]:
        """Every tensor of the adapter file: the entries, and copies of the base's own tensors that a file brought along."""
        return self.entries()

    def settle(self, tensors: Mapping[str, Tensor], where: str) -> None:
        """Called once a file's tensors are read, which are given again; `where` names the file."""

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Name -> parameter of everything that is trained; names are stable keys (those on disk where it is stored)."""
        return {entry.key: entry.tensor for entry in self.entries() if isinstance(entry.tensor, nn.Parameter)}

    def state(self) -> dict[str, Tensor]:
        """Every tensor needed to continue a run exactly, also those that the adapter file has no place for."""
        return {entry.key: entry.tensor.detach() for entry in self.entries()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`, also right after `build`, without a start. `ValueError` where names or shapes differ."""
        own = self.state()
        odd = sorted(
            key for key in {*own, *state} if key not in own or key not in state or own[key].shape != state[key].shape
        )
        if odd:
            raise ValueError(f"the state does not fit: {odd[:3]}")
        with torch.no_grad():
            # in place: optimizers and wrappers hold these very tensors
            for key, tensor in own.items():
                tensor.copy_(state[key])

    def saved(self) -> tuple[MethodConfig, dict[str, Tensor]]:
        """Configuration and tensors as they go to disk (a method whose start shifts the base converts itself here)."""
        tensors = {entry.key: entry.stored() for entry in self.file_entries() if entry.key not in self.absent_keys}
        return self.file_config(), tensors

    def companions(self) -> dict[str, Tensor]:
        """Tensors that the reference's format has no place for (prompt encoders), kept in a file beside the adapter."""
        return {}

    def load_companions(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes what `companions` wrote; called after the entries are loaded."""

    def file_config(self) -> MethodConfig:
        """The configuration to write, targets resolved."""
        return self.config

    # -- life cycle ----------------------------------------------------------------------------------------------

    @abstractmethod
    def initialise(self, context: InitContext) -> None:
        """Gives every tensor its start value, drawing from `context.generator` only."""

    @abstractmethod
    def set_enabled(self, enabled: bool) -> None:
        """Switches the adapter on or off; off means the base model's answer, bit for bit."""

    @abstractmethod
    def remove(self) -> None:
        """Takes the adapter out; afterwards the model is the object tree that it was before."""

    def require_mergeable(self) -> None:
        """Raises `MergeError` for a method that has no weight-space form, at little cost."""

    @abstractmethod
    def merge(self, around: Around | None = None) -> None:
        """Folds the adapter into the base and removes it. Raises `MergeError` before touching anything.

        `around`: entered before each module of the base gets its new values and left after it, so that they can be put
        elsewhere one after the other; a merge that fails then leaves the model as it is.
        """

    @abstractmethod
    def targets(self) -> list[str]:
        """Paths of the modules that are adapted, for summaries."""

    # -- training ------------------------------------------------------------------------------------------------

    def parameter_groups(self, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """Optimizer groups. One group by default; a method may own more (LoRA+)."""
        parameters = list(self.trainable_parameters().values())
        return [{"params": parameters, "lr": learning_rate, "weight_decay": weight_decay}]

    def decays(self, parameter: nn.Parameter) -> bool:
        """Whether weight decay pulls a tensor towards 0: matrices, but no bias, norm, magnitude or factor.

        A method whose vectors are stored with two dimensions says so itself.
        """
        return parameter.ndim >= 2

    def after_step(self, step: int, total_steps: int) -> None:
        """Called after each optimizer step (counted from 1) while the gradients are still there (AdaLoRA's schedule)."""

    def extra_loss(self) -> Tensor | None:
        """A term to add to the loss of every step (AdaLoRA's orthogonality), None for most."""
        return None

    def set_training(self, training: bool) -> None:
        """Switches dropout of what is not a module of the model (wrappers are, and follow `model.train`)."""

    def start_differs(self) -> str | None:
        """None when the method starts as the base; else why it does not."""
        return None

    def saved_differently(self) -> str | None:
        """None when the file holds the live tensors; else what form they are saved in."""
        return None

    def added_positions(self) -> int:
        """Positions that the method itself takes in front of a row's tokens (virtual tokens)."""
        return 0

    def packing_fault(self) -> str | None:
        """Why several rows cannot share a sequence under this method; None where they can."""
        return None

    def gradient_exempt(self) -> frozenset[str]:
        """Names of trainable tensors whose gradient may rightly be zero at the first steps."""
        return frozenset()

    def set_trainable(self, trainable: bool) -> None:
        """Switches the gradients of every trainable tensor on or off."""
        for parameter in self.trainable_parameters().values():
            parameter.requires_grad_(trainable)


class Method(ABC):
    """A method as shared code sees it: a configuration class and a builder."""

    config_class: ClassVar[type[MethodConfig]]
    other_names: ClassVar[Mapping[str, str]] = {}
    """Names of tensors in other tools, where they stand transposed -> names here."""
    repeated_names: ClassVar[tuple[str, ...]] = ()
    """Parts of keys under which a file of the reference has the base layer's own tensors a second time."""

    @property
    def name(self) -> str:
        """The name by which a recipe asks for it (`method.type`)."""
        return self.config_class.name

    def adopt(self, model: nn.Module, config: Any, file: AdapterFile) -> tuple[Any, AdapterFile]:
        """A file in an older layout of this method as it is laid out today; called before `build`. Raises
        `AdapterError` where that cannot be done."""
        return config, file

    def of_pairs(self, model: nn.Module, pairs: Pairs) -> Written:
        """Low-rank updates of a plain model as an adapter of this method; only where its configuration `holds_pairs`."""
        raise AdapterError(f"{self.name} cannot hold low-rank updates")

    @abstractmethod
    def build(self, model: nn.Module, config: Any, shapes: Shapes | None) -> Adapter:
        """Puts the method on a model, tensors allocated on the devices of the weights they belong to, not initialised.

        `shapes` are those on disk when loading: a builder takes ranks from them where the file rules (AdaLoRA).
        Raises `AdapterError` when a target matches nothing or does not fit; the model is then untouched.
        """


_SHOWN = 4


def left_out_notes(left_out: Mapping[str, str]) -> tuple[str, ...]:
    """One line for each reason, with the layers that it holds for; repeated blocks are shown once."""
    by_reason: dict[str, list[str]] = {}
    for path, reason in left_out.items():
        by_reason.setdefault(reason, []).append(path)
    notes = []
    for reason, paths in by_reason.items():
        # numbers of blocks become stars, so that the same layer of every block is one kind
        kinds = list(dict.fromkeys(re.sub(r"\.\d+(?=\.|$)", ".*", path) for path in paths))
        shown = ", ".join(kinds[:_SHOWN]) + (f" and {len(kinds) - _SHOWN} more" if len(kinds) > _SHOWN else "")
        notes.append(f"left out: {len(paths)} layer{'' if len(paths) == 1 else 's'} {reason} ({shown})")
    return tuple(notes)


@dataclass(frozen=True)
class Summary:
    """What `attach` did."""

    method: str
    targets: tuple[str, ...]
    trainable: int
    total: int
    """Parameters of the base plus those of the adapter, shared tensors counted once."""
    tensors: int = 0
    notes: Sequence[str] = field(default_factory=tuple)


def cannot_merge(method: str, reason: str) -> MergeError:
    """The error of a method that has no weight-space form."""
    return MergeError(f"{method} cannot be merged: {reason}", fix="serve the adapter with its base instead")
