"""Opening a base without holding it: its modules, and in the place of each large weight the file that it lies in.

The names of the files are those of the model, but for a prefix, for modules that were renamed, and for experts that were
fused since (`conversions`). A base that needs more than that to be read is not streamed: `NotStreamed` says why, and who
asks loads it whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from peftcli.models.conversions import Conversions
from peftcli.models.experts import fused_weights
from peftcli.models.heads import LabelHead
from peftcli.models.new_heads import note_new_heads
from peftcli.models.skeleton import laid_out
from peftcli.models.source import BaseSource
from peftcli.models.stored import StoredTensor, tensors_of_base
from peftcli.models.streamed import Fused, Held, InFile, NotStreamed, Stream, StreamedWeight

SMALL = 1 << 16
"""Parameters of at most so many values (norms, biases) are read at once and kept."""


@dataclass(frozen=True)
class Place:
    """Where one tensor of a file lies in the model."""

    name: str
    """Of the model's parameter or buffer."""
    expert: int | None = None
    first: int = 0
    """The first row of the expert's that is the file's, for one of several matrices below each other."""


@dataclass
class StreamedBase:
    """A base that lies in its files."""

    model: nn.Module
    stream: Stream
    places: dict[str, Place] = field(default_factory=dict)
    """Tensor of a file -> where it lies in the model; what the model's class does not own is not among them."""
    absent: frozenset[str] = frozenset()
    """Names in the model that no file has: they share a tensor with another name."""


def open_streamed(
    source: BaseSource,
    *,
    auto_class: str,
    dtype: torch.dtype = torch.float32,
    head: LabelHead | None = None,
) -> StreamedBase:
    """The base as `load_model` gives it on the CPU, with its large weights left in their files, to be looked at and not
    to be trained. Raises every error of loading, and `NotStreamed`."""
    tensors = tensors_of_base(source)
    if any(tensor.dtype is None for tensor in tensors.values()):
        raise NotStreamed("its files hold numbers of a type that has no name here")
    # small tensors hold their values: what a class computes for itself (rotary tables) is in no file
    with torch.random.fork_rng(devices=[]):
        model = laid_out(source, _LargeAside(), auto_class=auto_class, head=head, dtype=dtype)
    found = StreamedBase(model, Stream(dtype))
    held = _held(model, tensors, found.places)
    found.absent = _settle(found, held)
    model.eval()
    _expert_after_expert(model)
    return found


def _expert_after_expert(model: nn.Module) -> None:
    """A grouped product would need the matrices of all experts of a layer at once."""
    if isinstance(model, PreTrainedModel) and any(fused_weights(model)):
        model.set_experts_implementation("eager")


class _LargeAside(TorchFunctionMode):
    """Inside, large tensors without values are made on the meta device."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty and kwargs.get("device") is None:
            aside = func(*args, **{**kwargs, "device": "meta"})
            if aside.numel() > SMALL:
                return aside
        return func(*args, **kwargs)


def kept_in_float32(model: nn.Module, dtype: torch.dtype) -> re.Pattern[str] | None:
    """Names of the tensors that a family keeps in float32 in a model of half precision; None where there are none."""
    kept = set(model._keep_in_fp32_modules_strict or ())  # type: ignore[arg-type]
    if dtype == torch.float16:
        kept |= set(model._keep_in_fp32_modules or ())  # type: ignore[arg-type]
    return re.compile(rf"(^|\.)({'|'.join(sorted(kept))})(\.|$)") if kept else None


def named_places(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    """Name, holder, name there and tensor of all that a file holds; shared tensors at every place."""
    for path, module in model.named_modules():
        kept = {n: b for n, b in module._buffers.items() if n not in module._non_persistent_buffers_set}
        for leaf, tensor in {**module._parameters, **kept}.items():
            if tensor is not None:
                yield (f"{path}.{leaf}" if path else leaf), module, leaf, tensor


# -- files and model --------------------------------------------------------------------------------------------------


def _held(model: nn.Module, tensors: Mapping[str, StoredTensor], places: dict[str, Place]) -> dict[str, Held]:
    """Name in the model -> where its values lie; notes the place of each tensor of the files."""
    live = {name: tensor for name, _, _, tensor in named_places(model)}
    conversions, prefix = Conversions(model), str(getattr(model, "base_model_prefix", ""))
    found: dict[str, Held] = {}
    fused: dict[str, dict[tuple[int, int], tuple[str, StoredTensor]]] = {}
    for name, tensor in tensors.items():
        own = next((other for other in _names(name, conversions, prefix) if other in live), None)
        if own is not None:
            if own in found:
                raise NotStreamed(f"its files hold `{own}` twice")
            found[own], places[name] = InFile(tensor), Place(own)
        elif (place := conversions.fused_place(name)) is not None:
            parameter = next((n for n in _prefixed(place.parameter, prefix) if n in live), None)
            if parameter is not None:
                fused.setdefault(parameter, {})[place.expert, place.part] = (name, tensor)
    for parameter, parts in fused.items():
        found[parameter] = _fused(parameter, parts, places)
    for own, one in found.items():
        if tuple(one.shape) != tuple(live[own].shape):
            raise NotStreamed(f"`{own}` has another shape in its files than in the model")
    return found


def _names(name: str, conversions: Conversions, prefix: str) -> Iterator[str]:
    yield name
    for known in dict.fromkeys((name, conversions.present_name(name))):
        yield from _prefixed(known, prefix)


def _prefixed(name: str, prefix: str) -> Iterator[str]:
    yield name
    if prefix:
        yield f"{prefix}.{name}"
        if name.startswith(f"{prefix}."):
            yield name.removeprefix(f"{prefix}.")


def _fused(
    parameter: str, parts: Mapping[tuple[int, int], tuple[str, StoredTensor]], places: dict[str, Place]
) -> Fused:
    experts, matrices = (1 + max(place[axis] for place in parts) for axis in (0, 1))
    if len(parts) != experts * matrices:
        raise NotStreamed(f"its files lack matrices of `{parameter}`")
    first = [0]
    for part in range(matrices):
        first.append(first[-1] + parts[0, part][1].shape[0])
    for (expert, part), (name, _) in parts.items():
        places[name] = Place(parameter, expert, first[part])
    return Fused([[parts[expert, part][1] for part in range(matrices)] for expert in range(experts)])


def _settle(base: StreamedBase, held: Mapping[str, Held]) -> frozenset[str]:
    """Puts what lies in files in its places. Returns the names that share a tensor with another and that no file has."""
    groups: dict[int, list[tuple[str, nn.Module, str, Tensor]]] = {}
    for place in named_places(base.model):
        groups.setdefault(id(place[3]), []).append(place)
    absent: set[str] = set()
    new: list[str] = []
    for group in groups.values():
        names = [name for name, *_ in group]
        there = [name for name in names if name in held]
        tensor = group[0][3]
        if not there:
            new += names
            tensor = torch.zeros_like(tensor, device="cpu") if tensor.is_meta else tensor.detach()
        else:
            tensor = _value(held[there[0]], there[0], base.stream)
            if any(not torch.equal(tensor, _value(held[name], name, base.stream)) for name in there[1:]):
                raise NotStreamed(f"`{there[0]}` and `{there[1]}` are tied and differ in its files")
            absent |= set(names) - set(there)
        for _, module, leaf, _ in group:
            if leaf in module._parameters:
                module._parameters[leaf] = _as_parameter(tensor)
            else:
                module._buffers[leaf] = tensor
        _share(group)
    if essential := note_new_heads(base.model, new):
        raise NotStreamed(f"its files have no `{essential[0]}`")
    return frozenset(absent)


def _value(held: Held, name: str, stream: Stream) -> Tensor:
    streamed = StreamedWeight.of(held, name, stream)
    return streamed if torch.Size(held.shape).numel() > SMALL else streamed.read()


def _as_parameter(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def _share(group: list[tuple[str, nn.Module, str, Tensor]]) -> None:
    """One parameter for all places of a shared tensor."""
    first = next((module._parameters[leaf] for _, module, leaf, _ in group if leaf in module._parameters), None)
    for _, module, leaf, _ in group:
        if leaf in module._parameters:
            module._parameters[leaf] = first
