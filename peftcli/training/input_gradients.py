"""Bases whose blocks run in a function of their own (reversible blocks): torch calls its backward only where its input
carries a gradient, and above a frozen embedding none does."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from peftcli.errors import NumericalError

_MARK = "_peftcli_inputs_carry_gradients"


def carry_through_inputs(model: nn.Module) -> None:
    """Lets what the input embedding gives carry a gradient, from now on; it changes no number.

    Raises `NumericalError` where that is so already, or where the model has no input embedding.
    """
    getter = getattr(model, "get_input_embeddings", None)
    embedding = getter() if callable(getter) else None
    # once: a second call means that the hook did not help
    if embedding is None or _MARK in embedding.__dict__:
        raise NumericalError(
            "the loss depends on no trainable tensor",
            fix="check target_modules: what they name does not take part in the loss",
        )
    embedding.__dict__[_MARK] = embedding.register_forward_hook(_with_gradient)


def _with_gradient(module: nn.Module, args: Any, output: Tensor) -> None:
    # in training only: measuring keeps no graph
    if module.training and not output.requires_grad:
        output.requires_grad_(True)
