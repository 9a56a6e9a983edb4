"""Whether a family's `generate` reads a text as its forward pass does, which is what training and scoring ask.

It gives RoBERTa and its kin positions that begin elsewhere than their own, and XLM a mask after the text: what such a
model has learned is not what is then written. Tried out on a few tokens, once a model, with the adapter off.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from enum import Enum
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from peftcli.adapters.surgery import attached, disabled
from peftcli.errors import ModelError, ModelWarning
from peftcli.models.device import is_out_of_memory

_PROBE_TOKENS = 8
_NEW_TOKENS = 3


class _Way(Enum):
    """How a model is written with so that it reads what training reads."""

    AS_IT_IS = "as transformers writes"
    OWN_POSITIONS = "with the positions that its forward pass counts itself"
    NO_CACHE = "with its own positions, and the whole text again for each token"
    NONE = "in no way"


_known: WeakKeyDictionary[Any, _Way] = WeakKeyDictionary()


@contextmanager
def as_trained(model: Any, prompt: Sequence[int]) -> Iterator[None]:
    """Inside, `generate` reads a text as the forward pass does. Tells where that needed something.

    Called in evaluation mode with the settings to generate by on the model; draws from no random stream. Raises
    `ModelError` where it cannot be had.
    """
    # once a model: two generations and two passes
    if model not in _known:
        # the base's own reading is asked, which is the same with any adapter
        with disabled(model) if attached(model) is not None else nullcontext():
            # the end of the prompt is enough, and cheap
            _known[model] = _way(model, list(prompt)[-_PROBE_TOKENS:])
        _tell(model, _known[model])
    if _known[model] is _Way.NONE:
        raise ModelError(
            f"`generate` of {type(model).__name__} reads a text differently from its forward pass, which was trained",
            fix="it can be trained and scored without; metrics of the loss need no text",
        )
    with _written(model, _known[model]):
        yield


def _tell(model: Any, way: _Way) -> None:
    if way in (_Way.OWN_POSITIONS, _Way.NO_CACHE):
        name = type(model).__name__
        message = (
            f"transformers' `generate` reads a text differently from how {name} does in training: written {way.value}"
        )
        warnings.warn(message, ModelWarning, stacklevel=2)


def _way(model: Any, prompt: list[int]) -> _Way:
    if getattr(model.config, "is_encoder_decoder", False):
        # its decoder begins with a token of its own, so that positions cannot be mistaken
        return _Way.AS_IT_IS
    for way in (_Way.AS_IT_IS, _Way.OWN_POSITIONS, _Way.NO_CACHE):
        with _written(model, way):
            if _reads_alike(model, prompt):
                return way
    return _Way.NONE


@contextmanager
def _written(model: Any, way: _Way) -> Iterator[None]:
    if way is _Way.AS_IT_IS:
        yield
        return
    before = model.generation_config.use_cache
    model.generation_config.use_cache = before and way is not _Way.NO_CACHE
    handle = model.register_forward_pre_hook(_without_positions, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
        model.generation_config.use_cache = before


def _without_positions(_model: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, {name: value for name, value in kwargs.items() if name != "position_ids"}


def _reads_alike(model: Any, prompt: list[int]) -> bool:
    """Whether new tokens are written from the scores that one pass over the whole text gives for them.

    The first, and one of those after it: a router that decides otherwise on a token, from rounding, is no other reading.
    """
    try:
        ids, scores = _steps(model, prompt)
        first = _whole(model, ids[:, : len(prompt)])[-1:]
        later = _whole(model, ids[:, :-1])[len(prompt) :]
    except (AttributeError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        return True  # it cannot write at all, which is told where it does
    expected = torch.cat([first, later])
    # ended early, by a family's own rule: nothing to compare
    if expected.shape[0] != len(scores):
        return True
    begins, *goes_on = [_alike(one[0], other, model) for one, other in zip(scores, expected, strict=True)]
    return begins and any(goes_on)


def _whole(model: Any, ids: Tensor) -> Tensor:
    """Scores at every place of a text, (length, vocabulary), as training computes them."""
    found: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]
    return found


def _alike(one: Tensor, other: Tensor, model: Any) -> bool:
    dtype = next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    finite = torch.isfinite(one) & torch.isfinite(other)
    one, other = one[finite].float(), other[finite].float()
    if not len(one):
        return True
    # the root of the type's precision: rounding along another path, not another reading
    return bool((one - other).abs().max() <= torch.finfo(dtype).eps ** 0.5 * max(1.0, float(other.abs().max())))


def _steps(model: Any, prompt: list[int]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The prompt with a few new tokens, (1, length), and the scores of each, (1, vocabulary)."""
    ids = torch.tensor([prompt], device=next(model.parameters()).device)
    settings = copy.deepcopy(model.generation_config)
    settings.update(
        max_new_tokens=_NEW_TOKENS,
        do_sample=False,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
        **dict.fromkeys(("temperature", "top_p", "top_k")),
    )
    found = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    return found.sequences, found.logits
