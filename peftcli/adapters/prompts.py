"""Methods that put virtual tokens in front of the input: what they share, whatever the tokens are made of.

A prompt hangs on the model as the module `prompt_encoder.default`, whose names inside are the reference's, so that
`model.parameters()`, `model.train()` and `model.to()` reach it; hooks do the rest. The two ways in are
`adapters.prompt_inputs` (rows in front of the embedded input) and `adapters.prompt_cache` (keys and values in front of
every attention).
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from peftcli.adapters.base import FILE_PREFIX, Adapter, Around, Entry, InitContext, Shapes, cannot_merge
from peftcli.adapters.layers import AdapterPart
from peftcli.adapters.layers_method import LayersAdapter
from peftcli.adapters.prompt_config import PromptConfig
from peftcli.adapters.selection import selected_entries, train_named_modules
from peftcli.errors import AdapterError, Fault

PROMPT_KEY = "prompt_embeddings"
"""Name of the prompt's rows in files of the reference."""
SLOT = "prompt_encoder"
"""The attribute of the model that holds the prompt's encoder, as in the reference."""
NAME = "default"
"""The encoder's name in its slot: the reference's name of the first adapter."""
HEAD_PREFIX = "base_model."
"""Prefix of modules trained beside a prompt: the reference wraps the bare model, so one `model.` is missing."""
_ENCODER_TOLERANCE = 1e-3
"""How far, relative to the largest value, an encoder's output may lie from the prompt in the adapter file."""


class PromptEncoder(AdapterPart):
    """Makes the prompt: called without arguments, gives (rows, width), float32. Parameters bear the reference's names."""

    @abstractmethod
    def forward(self) -> Tensor:
        """The prompt, (rows, width)."""

    @abstractmethod
    def initialise(self, context: InitContext) -> None:
        """Start values of every parameter, drawn from `context.generator` only."""

    def stored(self) -> Tensor:
        """The prompt as the adapter file holds it, without gradient or dropout."""
        # in evaluation mode: dropout between the network's layers would make another prompt each time
        training = self.training
        self.eval()
        with torch.no_grad():
            rows = self.forward()
        self.train(training)
        return rows


class PromptTable(PromptEncoder):
    """The prompt itself as the parameter `embedding.weight`, (rows, width)."""

    def __init__(self, rows: int, width: int, device: torch.device) -> None:
        super().__init__()
        self.embedding = nn.Embedding(rows, width, _weight=torch.empty(rows, width, device=device))

    def forward(self) -> Tensor:
        weight: Tensor = self.embedding.weight
        return weight

    def initialise(self, context: InitContext) -> None:
        # as torch starts an embedding; methods that start otherwise write over it
        with torch.no_grad():
            self.embedding.weight.copy_(torch.randn(self.embedding.weight.shape, generator=context.generator))

    def stored(self) -> Tensor:
        weight: Tensor = self.embedding.weight
        return weight


class _Slot(AdapterPart):
    """`prompt_encoder`, holding the encoder as `default`."""

    def __init__(self, encoder: PromptEncoder) -> None:
        super().__init__()
        self.add_module(NAME, encoder)


class PromptAdapter(Adapter):
    """A prompt on a model. Subclasses say how it gets into the forward pass (`hook`) and how it starts."""

    config: PromptConfig

    def __init__(self, model: nn.Module, config: PromptConfig, total_rows: int) -> None:
        super().__init__(model, config)
        self.total_rows = total_rows
        self.heads = LayersAdapter(model, config)
        self.handles: list[RemovableHandle] = []
        self.device = torch.device("cpu")

    @property
    def encoder(self) -> PromptEncoder:
        """The module whose output is the prompt."""
        encoder = getattr(self.model, SLOT).get_submodule(NAME)
        assert isinstance(encoder, PromptEncoder)
        return encoder

    def _put(self, encoder: PromptEncoder) -> None:
        if hasattr(self.model, SLOT) and not isinstance(getattr(self.model, SLOT), _Slot):
            raise AdapterError(f"the model has a part named `{SLOT}` itself", fix="choose a method that wraps layers")
        # hung in while the model is in some mode, which `train()` alone would set
        encoder.train(self.model.training)
        setattr(self.model, SLOT, _Slot(encoder))

    def prompt(self) -> Tensor:
        """The prompt as it goes into the model, (rows, width), with its gradient."""
        rows: Tensor = self.encoder()
        return rows

    # -- the way into the forward pass -----------------------------------------------------------------------------

    @abstractmethod
    def hook(self) -> Iterable[RemovableHandle]:
        """Puts the hooks on the model; called once, after building."""

    def start_life(self, width: int, device: torch.device, shapes: Shapes | None) -> None:
        """Hangs the prompt on the model (its encoder, or the table that a file holds), wraps `modules_to_save`, hooks.

        Raises `AdapterError` when the file's prompt has another shape than (total_rows, width), before anything of that
        size is allocated, or when a name matches nothing; the model is then untouched.
        """
        check_shape(PROMPT_KEY, (self.total_rows, width), shapes)
        self.device = device
        encoder = self.described_encoder() if shapes is None else None
        self._put(PromptTable(self.total_rows, width, device) if encoder is None else encoder.to_empty(device=device))
        try:
            names = dict.fromkeys(self.config.modules_to_save or ())
            train_named_modules(self.heads, names, may_lack=shapes is not None)
        # Ctrl-C too: copies of heads that were put in go again, and the exception goes on
        except BaseException:
            self.remove()
            raise
        self.handles.extend(self.hook())

    def set_enabled(self, enabled: bool) -> None:
        self.enabled = enabled
        self.heads.set_enabled(enabled)

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        self.heads.remove()
        delattr(self.model, SLOT)

    def start_differs(self) -> str | None:
        return "virtual tokens are read from the first step on"

    def packing_fault(self) -> str | None:
        return "its virtual tokens stand before a sequence, and a pack holds several rows that each need them"

    def merge(self, around: Around | None = None) -> None:
        self.require_mergeable()

    def require_mergeable(self) -> None:
        raise cannot_merge(self.config.name, "a prompt lengthens the input, no weight can stand for it")

    def targets(self) -> list[str]:
        return self.heads.targets()

    # -- tensors -----------------------------------------------------------------------------------------------------

    def initialise(self, context: InitContext) -> None:
        self.encoder.initialise(context)
        self.heads.initialise(context)

    def entries(self) -> list[Entry]:
        return [Entry(PROMPT_KEY, self.encoder.stored()), *self._head_entries()]

    def _head_entries(self) -> list[Entry]:
        return [
            dataclasses.replace(entry, key=HEAD_PREFIX + entry.key.removeprefix(FILE_PREFIX))
            for entry in selected_entries(self.heads.layers)
        ]

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        if isinstance(self.encoder, PromptTable):
            return super().trainable_parameters()
        # what trains is the network's parameters: its output is no leaf
        heads = {entry.key: entry.tensor for entry in self._head_entries() if isinstance(entry.tensor, nn.Parameter)}
        return {f"{SLOT}.{NAME}.{name}": value for name, value in self.encoder.named_parameters()} | heads

    def state(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.trainable_parameters().items()}

    def companions(self) -> dict[str, Tensor]:
        if isinstance(self.encoder, PromptTable):
            return {}
        return {f"{SLOT}.{NAME}.{name}": value.detach() for name, value in self.encoder.named_parameters()}

    def load_companions(self, tensors: Mapping[str, Tensor]) -> None:
        """Puts the trained encoder in the place of the finished prompt, so that training goes on where it stopped."""
        # asked before the table is replaced by the network
        table = self.prompt().detach()
        encoder = self.described_encoder()
        if encoder is None:
            raise AdapterError(f"this {self.config.name} has no prompt encoder, yet one lies beside the adapter")
        own = {f"{SLOT}.{NAME}.{name}": value for name, value in encoder.named_parameters()}
        faults = [
            Fault(f"`{key}` is only in one of the file and the method") for key in sorted(set(own) ^ set(tensors))
        ]
        faults += [
            Fault(f"`{key}` has shape {list(tensors[key].shape)}, this configuration needs {list(own[key].shape)}")
            for key in own
            if key in tensors and tensors[key].shape != own[key].shape
        ]
        if faults:
            raise AdapterError("the prompt encoder beside the adapter does not fit its configuration", faults=faults)
        encoder.to_empty(device=self.device)
        with torch.no_grad():
            for name, value in encoder.named_parameters():
                value.copy_(tensors[f"{SLOT}.{NAME}.{name}"])
        self._put(encoder)
        made = encoder.stored()
        if (made - table).abs().max() > _ENCODER_TOLERANCE * table.abs().max():
            raise AdapterError(
                "the prompt encoder beside the adapter makes another prompt than the adapter holds",
                fix="remove the encoder file, or get the adapter folder again",
            )

    def described_encoder(self) -> PromptEncoder | None:
        """The encoder that the configuration describes, or None where the prompt is a plain table.

        On the meta device: nothing is allocated, and nothing drawn from the shared random stream.
        """
        with torch.device("meta"):
            return self.new_encoder()

    def new_encoder(self) -> PromptEncoder | None:
        """Builds that encoder; None unless a method overrides it."""
        return None


def check_shape(key: str, wanted: tuple[int, ...], shapes: Shapes | None) -> None:
    """Compares a tensor of the file with what configuration and model want. Raises `AdapterError`."""
    if shapes is None or shapes.get(key) == wanted:
        return
    if key not in shapes:
        raise AdapterError(f"`{key}` is missing", fix="the adapter is incomplete: get it again")
    raise AdapterError(
        f"`{key}` has shape {list(shapes[key])}, configuration and model want {list(wanted)}",
        fix="load the base that it was trained on",
    )
