"""Names that transformers changes between releases: read here, nowhere else, and missed loudly.

What a model has read before (keys and values, or a state) goes into its forward pass as one argument:

    up to 5.23   `past_key_values`; `cache_params` in most models that keep a state
    from 5.24    `cache`; a caller may still use the older names
    some         a list of tensors of their own: `state` (RWKV), `mems` (XLNet), `past_buckets_states` (Reformer)
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from types import MethodType
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from peftcli.errors import ModelError

_CACHE_NAMES = ("cache", "past_key_values", "cache_params", "past_key_value", "layer_past")
_STATE_NAMES = ("state", "mems", "past_buckets_states")


def forward_names(module: nn.Module) -> tuple[str, ...]:
    """Names of the arguments of a module's forward pass, in order."""
    forward = module.forward
    if isinstance(forward, MethodType):
        # without `self`; a forward that was put in its place is no method, and is looked at each time
        return _names(forward.__func__)[1:]
    return tuple(inspect.signature(forward).parameters)


def takes(module: nn.Module, name: str) -> bool:
    """Whether a module's forward pass has an argument of this name, or takes any."""
    if name in forward_names(module):
        return True
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(module.forward).parameters.values())


# bounded, for functions made in tests would be kept for ever
@functools.lru_cache(maxsize=1024)
def _names(function: Callable[..., Any]) -> tuple[str, ...]:
    # follows the wrappers that rename an old spelling, to the names of the function inside
    return tuple(inspect.signature(function).parameters)


def named_arguments(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Positional arguments of a forward call under their names, beside the named ones."""
    return dict(zip(forward_names(module), args, strict=False)) | dict(kwargs)


def cache_name(module: nn.Module) -> str | None:
    """The argument under which a module takes keys and values, or a state, from outside; None where it takes none.

    Raises `ModelError` where the installed transformers uses a name that is not known here, which must not pass for
    a model without a cache.
    """
    found = _known(forward_names(module))
    if found is None:
        _check_release()
    return found


def check_memory_is_known(backbone: nn.Module) -> None:
    """Raises `ModelError` where a backbone can go on from what it has read, in a way that is not known here."""
    names = set(forward_names(backbone))
    if cache_name(backbone) is None and "use_cache" in names and not names & set(_STATE_NAMES):
        raise _unknown_name(type(backbone).__name__)


def _known(names: Iterable[str]) -> str | None:
    return next((name for name in _CACHE_NAMES if name in set(names)), None)


@functools.cache
def _check_release() -> None:
    """A model that surely has a cache must take it under a name that is known."""
    if _known(inspect.signature(transformers.LlamaModel.forward).parameters) is None:
        raise _unknown_name("LlamaModel")


def _unknown_name(model: str) -> ModelError:
    return ModelError(
        f"transformers {transformers.__version__} hands {model} its cache under a name that peftcli does not know",
        fix="install a release of transformers that pyproject.toml allows, or a newer peftcli",
    )


def read_before(inputs: Mapping[str, Any]) -> Any:
    """What a forward call is given of earlier tokens, whatever its name: a cache or a state; None where nothing is."""
    names = (*_CACHE_NAMES, *_STATE_NAMES)
    return next((inputs[name] for name in names if inputs.get(name) is not None), None)


def give_cache(module: nn.Module, inputs: dict[str, Any], cache: Any) -> None:
    """Puts a cache among the inputs of a module, in the place of any that it holds. `ModelError` where it takes none."""
    name = cache_name(module)
    if name is None:
        raise ModelError(f"{type(module).__name__} takes no cache", fix="use a method that needs none, such as lora")
    # one that was left under another spelling would be a second cache
    for other in _CACHE_NAMES:
        inputs.pop(other, None)
    inputs[name] = cache


def goes_on(inputs: Mapping[str, Any]) -> bool:
    """Whether a forward call goes on from tokens that a cache or a state among its inputs holds.

    Raises `ModelError` where that cannot be known.
    """
    held = read_before(inputs)
    if held is None:
        return False
    # a list of tensors is made by the first forward pass
    if isinstance(held, list | tuple):
        return True
    # of an encoder-decoder's cache the decoder's own half: the other holds the encoder's output, not tokens before
    own = getattr(held, "self_attention_cache", held)
    layers = getattr(own, "layers", None)
    told = [_tells(layer) for layer in ([own] if layers is None else layers)]
    if not told or any(answer is not None for answer in told):
        return any(told)
    # up to 5.3 some states do not say it, and their callers do
    position = inputs.get("cache_position")
    if isinstance(position, Tensor):
        return bool(position[0] > 0)
    raise ModelError(
        f"{type(held).__name__} of transformers {transformers.__version__} does not say whether it holds tokens",
        fix="install a newer transformers, or use a method that needs no cache, such as lora",
    )


def _tells(layer: Any) -> bool | None:
    """Whether a layer of a cache holds something; None where it has nothing that says so."""
    told = getattr(layer, "has_previous_state", None)
    if callable(told):
        told = told()
    if isinstance(told, dict):
        told = any(told.values())
    # a layer of keys and values has no such state, but counts its tokens
    if not told and hasattr(layer, "get_seq_length"):
        return int(layer.get_seq_length()) > 0
    return None if told is None else bool(told)


def tokens_before(inputs: Mapping[str, Any]) -> int:
    """How many tokens a cache or a state among the inputs of a forward call holds; 0 for the first call.

    Raises `ModelError` where a state does not count them.
    """
    if not goes_on(inputs):
        return 0
    try:
        return int(read_before(inputs).get_seq_length())
    except (AttributeError, ValueError) as error:
        position = inputs.get("cache_position")
        if isinstance(position, Tensor):
            return int(position[0])
        raise ModelError(
            "this model keeps a state, which does not say how many tokens it has read",
            fix="pass the attention mask of all tokens so far",
        ) from error


def shift_cache_position(inputs: dict[str, Any], n: int, *, entering: bool) -> None:
    """Up to 5.3 a caller says at which places of the cache its tokens go, (length,): after `n` that it knows nothing of.

    `entering`: those `n` are among the tokens of this call. Beside `cache_params` they are places of a convolution.
    """
    position = inputs.get("cache_position")
    if not isinstance(position, Tensor) or inputs.get("cache_params") is not None:
        return
    first = torch.arange(n if entering else 0, device=position.device, dtype=position.dtype)
    # each token of the call stands `n` places further on than its caller believes
    inputs["cache_position"] = torch.cat([first, position + n])
