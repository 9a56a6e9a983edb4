"""Folding an adapter into the model in memory: the model is plain again, or it is untouched."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from peftcli.adapters.base import Around
from peftcli.adapters.base_modules import named_base_modules
from peftcli.adapters.layers import unwrapped
from peftcli.adapters.layers_method import LayersAdapter
from peftcli.adapters.surgery import adapter_of, bare, disabled, forget
from peftcli.errors import MergeError
from peftcli.models.calling import token_inputs
from peftcli.models.dequantized import dequantize as dequantize_layers
from peftcli.models.structure import input_embedding, output_embedding

_TIE = "tie_word_embeddings"


def merge(model: nn.Module, around: Around | None = None) -> None:
    """Bakes the adapter into the base's weights, computed in float32 and rounded once, and takes the wrappers out.

    `around`: what to do before and after each module of the base is merged (`Adapter.merge`).

    Tied tensors of which one place was adapted are untied at every place, in the tensors and in `model.config`.
    Raises `MergeError` (the model is untouched) when the method has no weight-space form, a value is not finite, or the
    family computes something else once its tensors are not tied.
    """
    model = bare(model)
    adapter = adapter_of(model)
    # before the merge, which gives places of one tensor values of their own
    shared = _shared_embeddings(model)
    paths = [path for path, _ in adapter.layers] if isinstance(adapter, LayersAdapter) else []
    if any(_touches_a_part(paths, group) for group in shared):
        _require_free_of_tying(model)
    adapter.merge(around)
    forget(model)
    # after `forget`: the wrappers are gone, and each place holds its own tensor
    _settle_tying(model, shared)
    _check_plain(model)


def dequantize(model: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Gives a quantized model plain weights, those that it dequantizes to, in place and under an adapter too.

    `dtype`: default, what each layer computes in. A model without packed layers is left alone.
    """
    dequantize_layers(bare(model), dtype)


Place = tuple[str, nn.Module, str]
"""Path of a module, the module, and the name of its parameter."""


def _shared_embeddings(model: nn.Module) -> list[list[Place]]:
    """Places of each tensor that an embedding or the head shares with others: what the configuration calls tied."""
    places: dict[int, list[Place]] = {}
    for path, module in named_base_modules(model):
        for name, parameter in module.named_parameters(recurse=False):
            places.setdefault(id(parameter), []).append((path, module, name))
    # only what the configuration's tying is about: two layers that share a weight on purpose stay as they are
    roles = {id(unwrapped(found)) for found in (input_embedding(model), output_embedding(model)) if found is not None}
    return [group for group in places.values() if len(group) > 1 and any(id(module) in roles for _, module, _ in group)]


def _touches_a_part(paths: list[str], group: list[Place]) -> bool:
    """Whether the adapter may change some places of a shared tensor and leave others."""
    inside = [any(path == target or path.startswith(target + ".") for target in paths) for path, _, _ in group]
    return any(inside) and not all(inside)


def _settle_tying(model: nn.Module, shared: list[list[Place]]) -> None:
    """What was one tensor is one again where the merge left it equal at every place.

    Else the configuration says that nothing is tied, and then every place of every such tensor needs a tensor of its
    own, also those that the adapter did not touch: they hang on the same setting (`shared` of T5 and BART stands at
    four places, the bias of BERT's head at two).
    """
    untied = not all(_equal(group) for group in shared)
    for group in shared:
        seen: set[int] = set()
        for _, module, name in group:
            tensor = module.get_parameter(name)
            if not untied:
                module.register_parameter(name, _tensor(group[0]))
            elif id(tensor) in seen:
                module.register_parameter(name, _own(tensor))
            seen.add(id(tensor))
    if untied:
        for config in _configs(model):
            config.tie_word_embeddings = False


def _own(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().clone(), requires_grad=tensor.requires_grad)


def _tensor(place: Place) -> nn.Parameter:
    return place[1].get_parameter(place[2])


def _equal(group: list[Place]) -> bool:
    first = _tensor(group[0])
    # one tensor is equal to itself without being read: of a model in files it may be larger than memory
    return all(other is first or torch.equal(first, other) for other in map(_tensor, group[1:]))


def _configs(model: nn.Module) -> list[Any]:
    """The configurations in which the model's tying is written: its own and that of its text part."""
    config: Any = model.config
    return [config, config.get_text_config()]


# -- families that compute otherwise once untied -------------------------------------------------------------------


def _require_free_of_tying(model: nn.Module) -> None:
    """Some families scale the last hidden state while their embeddings are tied, and not once they are not (T5): an
    untied folder would then be another model. Found by asking both the configuration and the forward pass."""
    config: Any = getattr(model, "config", None)
    if config is None or not getattr(config, _TIE, False):
        return
    if _follows_in_config(config) or _follows_in_forward(model):
        raise MergeError(
            f"{type(model).__name__} computes something else once its tied embeddings are separate, which this merge needs",
            fix="leave embeddings and head out of target_modules, or serve the adapter with its base",
        )


def _follows_in_config(config: Any) -> bool:
    """Whether another field of the configuration is set from the tying when it is read from a file."""
    # read from a file, as the merged folder will be: fields may be set from others while it is read
    tied, untied = ({**config.to_dict(), _TIE: value} for value in (True, False))
    read = [type(config).from_dict(document).to_dict() for document in (tied, untied)]
    return any(read[0].get(key) != read[1].get(key) for key in {*read[0], *read[1]} - {_TIE})


@torch.no_grad()
def _follows_in_forward(model: nn.Module) -> bool:
    # four ids that every vocabulary has
    row = torch.arange(4, device=next(model.parameters()).device)[None]
    # with the adapter off: the question is about the base's own forward
    with disabled(model):
        tied = model(**token_inputs(model, row))[0]
        with _flag_off(model):
            untied = model(**token_inputs(model, row))[0]
    return not torch.equal(tied, untied)


@contextlib.contextmanager
def _flag_off(model: nn.Module) -> Iterator[None]:
    configs = {id(config): config for config in _configs(model)}
    before = {key: vars(config)[_TIE] for key, config in configs.items() if _TIE in vars(config)}
    for config in configs.values():
        config.tie_word_embeddings = False
    try:
        yield
    finally:
        for key, config in configs.items():
            # a setting that came from the class, not from the instance, must come from there again
            del config.tie_word_embeddings
            if key in before:
                config.tie_word_embeddings = before[key]


def _check_plain(model: nn.Module) -> None:
    """A merge that walks layers alone would silently succeed on hooks: nothing of ours may be left on the model."""
    left = [name for name, module in model.named_modules() if type(module).__module__.startswith("peftcli.")]
    if left:
        raise MergeError(f"merging left {len(left)} adapter modules behind: {', '.join(left[:3])}")
