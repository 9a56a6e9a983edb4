"""A model in two parts: the hidden states of its backbone, and what it makes of them, position by position.

The second part is the model's own forward with the backbone's answer given, so that whatever stands between the last
layer and the logits (a projection, an adapter on the head, soft caps, scales) stays the model's own code. That a model
lets itself be cut so is proven on the model itself, with a few tokens, before it is relied upon.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from peftcli.models.modes import evaluating
from peftcli.tasks.losses.target_logits import Inputs, equal_logits, full_logits, logits_of, probe_batch


class SplitHead:
    """One model, cut behind its backbone. Made by `of`."""

    def __init__(self, model: nn.Module, parent: nn.Module, name: str) -> None:
        self._model = model
        self._parent, self._name = parent, name  # where the backbone hangs
        self.vocabulary = 0
        self.dtype = torch.float32
        """Of the hidden states."""
        self.trained: tuple[Tensor, ...] = ()
        """Trained tensors that take part in the second part."""

    @classmethod
    def of(cls, model: nn.Module) -> SplitHead | None:
        """The model's two parts; None where they cannot be told apart, or together give other logits."""
        candidates = (cls(model, parent, name) for parent, name in _backbones(model))
        return next((split for split in candidates if split._is_exact()), None)

    @property
    def _backbone(self) -> nn.Module:
        found = self._parent._modules[self._name]
        assert found is not None, "hung there when this was made"
        return found

    def hidden(self, inputs: Inputs, positions: Tensor) -> tuple[Tensor, Any] | None:
        """Hidden states of chosen positions (chosen, hidden) and the backbone's answer around them; None where it is of
        another form. `positions`: indices into the flattened (batch * seq). The head is run on nothing."""
        length = inputs["input_ids"].shape[1]
        found: list[tuple[Tensor, Any]] = []

        def take(_module: nn.Module, _args: Any, answer: Any) -> Any:
            states = _states_of(answer)
            if states is None or states.dim() != 3 or states.shape[1] < length:
                return None
            # without what a prompt method put in front
            real = states[:, -length:].reshape(-1, states.shape[-1])
            found.append((real.index_select(0, positions), answer))
            return _with_states(answer, states[:, :0])

        hook = self._backbone.register_forward_hook(take)
        try:
            self._model(**inputs, use_cache=False)
        finally:
            hook.remove()
        return found[0] if len(found) == 1 else None

    @contextlib.contextmanager
    def answering(self, inputs: Inputs, answer: Any) -> Iterator[None]:
        """Inside the block `logits` may be asked. `answer`: of the backbone, as `hidden` gave it."""
        backbone = self._backbone
        self._parent._modules[self._name] = self._stand_in = _StandIn(backbone, answer)
        self._inputs = inputs
        try:
            yield
        finally:
            self._parent._modules[self._name] = backbone
            del self._stand_in, self._inputs

    def logits(self, hidden: Tensor) -> Tensor:
        """What the model makes of hidden states, (rows, hidden) -> (rows, vocab)."""
        self._stand_in.states = hidden.unsqueeze(0)
        # its own forward and no hook around it: those have seen the inputs and the answer already
        output = self._model.forward(**self._inputs, use_cache=False)
        return logits_of(output).squeeze(0)

    def _is_exact(self) -> bool:
        inputs, positions = probe_batch(self._model)
        with evaluating(self._model):
            full = full_logits(self._model, inputs, positions)
            try:
                logits = self._both_parts(inputs, positions)
            except Exception:
                return False  # whatever it says: a forward that needs more of its backbone than an answer of any length
        return logits is not None and equal_logits(logits, full)

    def _both_parts(self, inputs: Inputs, positions: Tensor) -> Tensor | None:
        found = self.hidden(inputs, positions)
        if found is None:
            return None
        hidden, answer = found
        # before the stand-in hides the backbone's own: a tied table is trained there and used here
        candidates = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        with self.answering(inputs, answer):
            logits = self.logits(hidden)
            self.trained = self._trained(hidden, candidates)
        self.vocabulary, self.dtype = logits.shape[-1], hidden.dtype
        return logits

    def _trained(self, hidden: Tensor, candidates: list[nn.Parameter]) -> tuple[Tensor, ...]:
        if not candidates:
            return ()
        with torch.enable_grad():
            total = self.logits(hidden.detach().requires_grad_()).float().sum()
        found = torch.autograd.grad(total, candidates, allow_unused=True)
        return tuple(t for t, gradient in zip(candidates, found, strict=True) if gradient is not None)


class _StandIn(nn.Module):
    """In the backbone's place: answers with given hidden states, and is the backbone in all that is asked of it else."""

    def __init__(self, original: nn.Module, answer: Any) -> None:
        super().__init__()
        self.__dict__["original"] = original
        self.answer = answer
        self.states: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["original"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return _with_states(self.answer, self.states)


def _backbones(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Where modules hang that could give the last hidden states: the backbone, and what a head calls past it."""
    decoder = getattr(model, "get_decoder", None)
    wanted = [getattr(model, "base_model", None), decoder() if callable(decoder) else None]
    for backbone in wanted:
        for parent in model.modules():
            for name, child in parent._modules.items():
                if child is not None and child is backbone:
                    yield parent, name


def _states_of(answer: Any) -> Tensor | None:
    states = getattr(answer, "last_hidden_state", None)
    if states is None and isinstance(answer, tuple) and answer:
        states = answer[0]
    return states if isinstance(states, Tensor) else None


def _with_states(answer: Any, states: Tensor | None) -> Any:
    """The backbone's answer with other hidden states."""
    if isinstance(answer, tuple):
        return (states, *answer[1:])
    changed = copy.copy(answer)
    changed["last_hidden_state"] = states
    return changed
