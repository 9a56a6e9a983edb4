"""What is seen of a model before a merge, and what must be true of its weights afterwards.

Three links, none of which shares code with the merge:
  1. the wrapped modules' own forward on random vectors == the plain modules' with the merged weights (float64);
     every tensor that no wrapper stands on has its old bits
  2. merged weight -> type of the file: how much of the exact update is left, weight by weight
  3. bits of every tensor in memory == bits of the folder, read back
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from peftcli.adapters.layers import LayersAdapter, named_base_modules, parent_of, unwrapped
from peftcli.adapters.surgery import adapter_of
from peftcli.errors import CheckFailed, Fault
from peftcli.models.calling import token_inputs
from peftcli.models.weights import is_linear, weight_view

PROBES = 16
RELATIVE = 2e-5
"""Of a row's size: what float32 may lose where the same sum is taken in two ways."""
ABSOLUTE = 1e-6
"""Of the largest row, for rows that are nearly zero."""
_CHUNK = 4096
_PIECE = 1 << 24

TypeOf = Callable[[str], torch.dtype]


def adapted_sites(model: nn.Module) -> dict[str, nn.Module]:
    """Path -> the outermost wrapper there, of every module that the adapter stands on."""
    adapter = adapter_of(model)
    paths = [path for path, _ in adapter.layers] if isinstance(adapter, LayersAdapter) else []
    return {path: module_at(model, path) for path in dict.fromkeys(paths)}


def module_at(model: nn.Module, path: str) -> nn.Module:
    """What stands at a path, wrapped or not."""
    if not path:
        return model
    parent, name = parent_of(model, path)
    found = getattr(parent, name)
    assert isinstance(found, nn.Module)
    return found


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Everything of the base that a file holds, under the names in the bare model; shared tensors at every place."""
    for path, module in named_base_modules(model):
        kept = {n: b for n, b in module._buffers.items() if n not in module._non_persistent_buffers_set}
        for name, tensor in {**module._parameters, **kept}.items():
            if tensor is not None:
                yield (f"{path}.{name}" if path else name), tensor


def digest(tensor: Tensor) -> str:
    """SHA-256 of shape and bits."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    found = hashlib.sha256(str(tuple(tensor.shape)).encode())
    found.update(flat.numpy().data)
    return found.hexdigest()


def digests(model: nn.Module) -> dict[str, str]:
    """Name -> digest of every tensor."""
    return {name: digest(tensor) for name, tensor in named_tensors(model)}


# -- before the merge ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Witness:
    """What was seen before the merge."""

    bits: dict[str, str]
    """Digest of every tensor of the base."""
    may_change: frozenset[str]
    originals: dict[str, Tensor]
    """Copies of the tensors that may change, in the types of the base's files, which lose nothing."""
    probes: dict[str, Tensor]
    """Path -> answers of the wrapped module to random vectors (or to every token), float64."""
    in_use: dict[str, Tensor]
    """Name -> projection of a parameter as the module itself saw it while the adapter was on: for modules that have no
    plain vectors as input (norms, fused experts, parts that are trained whole)."""


def witness(model: nn.Module, type_of: TypeOf, rows: list[Tensor]) -> Witness:
    """Looks at a model with its adapter on. `rows`: prompts that reach the adapted modules."""
    sites = adapted_sites(model)
    own = {f"{path}.{name}" if path else name
           for path, site in sites.items() for name, _ in unwrapped(site).named_parameters()}  # fmt: skip
    originals = {name: t.detach().to(type_of(name), copy=True).cpu() for name, t in named_tensors(model) if name in own}
    probes = {path: answer for path, site in sites.items() if (answer := probe(path, site)) is not None}
    rest = {path: site for path, site in sites.items() if path not in probes}
    return Witness(digests(model), frozenset(own), originals, probes, _parameters_in_use(model, rest, rows))


@torch.no_grad()
def probe(path: str, module: nn.Module) -> Tensor | None:
    """Answers of a linear layer to random vectors and to zero, (probes + 1, out), or of an embedding to every token,
    projected on random directions, (tokens, probes). None for a module of another kind."""
    base = unwrapped(module)
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(path.encode()).digest()[:7], "little"))
    with in_float64(module):
        device = next(base.parameters()).device
        if is_linear(base):
            width = weight_view(base).shape[1]
            vectors = torch.randn(PROBES, width, generator=generator, dtype=torch.float64)
            vectors = torch.cat([vectors, vectors.new_zeros(1, width)]).to(device)
            answer = module(vectors)
            return answer.double().cpu() if isinstance(answer, Tensor) else None
        if isinstance(base, nn.Embedding):
            directions = torch.randn(base.embedding_dim, PROBES, generator=generator, dtype=torch.float64).to(device)
            ids = torch.arange(base.num_embeddings, device=device)
            return torch.cat([(module(part).double() @ directions).cpu() for part in ids.split(_CHUNK)])
    return None


@contextlib.contextmanager
def in_float64(module: nn.Module, precise: bool = True) -> Iterator[None]:
    """Float32 tensors as float64 inside the block; there and back is exact."""
    if precise:
        module.double()
    try:
        yield
    finally:
        if precise:
            module.float()


def _parameters_in_use(model: nn.Module, sites: Mapping[str, nn.Module], rows: list[Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def look(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            for name, value in module.named_parameters():
                label = f"{path}.{name}" if path else name
                if label not in found:
                    found[label] = projection(label, value)

        return hook

    handles = [unwrapped(site).register_forward_pre_hook(look(path)) for path, site in sites.items()]
    try:
        with torch.no_grad():
            for row in rows if handles else []:
                model(**token_inputs(model, row))
    finally:
        for handle in handles:
            handle.remove()
    return found


def projection(label: str, value: Tensor) -> Tensor:
    """A tensor's last dimension projected on random directions; one-dimensional tensors whole. float64, on the CPU."""
    if value.dim() < 2:
        return value.detach().double().cpu()
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(label.encode()).digest()[:7], "little"))
    directions = torch.randn(value.shape[-1], PROBES, generator=generator, dtype=torch.float64)
    return (value.detach().double() @ directions.to(value.device)).cpu()


# -- after the merge -----------------------------------------------------------------------------------------------


def require_same_function(model: nn.Module, seen: Witness) -> None:
    """Link 1, on the plain model. Raises `CheckFailed` naming what is not what the adapter's forward says."""
    faults: list[str] = []
    for path, before in seen.probes.items():
        after = probe(path, module_at(model, path))
        assert after is not None, "the same kind of module as before"
        axis = 0 if is_linear(module_at(model, path)) else 1
        faults += [f"{path} ({count} of its rows)"] if (count := _apart(before, after, axis)) else []
    tensors = dict(named_tensors(model))
    for name, before in seen.in_use.items():
        count = _apart(before, projection(name, tensors[name]), -1 if before.dim() > 1 else None)
        faults += [f"{name} ({count} of its rows)"] if count else []
    if faults:
        raise _failed("merged weights are not what the adapter computes", faults)
    now = digests(model)
    stray = [name for name in now if name not in seen.may_change and now[name] != seen.bits.get(name)]
    if stray:
        raise _failed("weights that the adapter does not touch have changed", stray)


def _apart(before: Tensor, after: Tensor, axis: int | None) -> int:
    """How many rows differ beyond rounding; not-a-number counts. `axis`: over which a row's size is taken."""
    size = after.abs() if axis is None else after.square().mean(axis, keepdim=True).sqrt()
    allowed = RELATIVE * size + ABSOLUTE * size.nan_to_num(0.0, 0.0, 0.0).max() + 1e-12
    wrong = ~((before - after).abs() <= allowed) | ~torch.isfinite(after)
    return int(wrong.any(axis).sum() if axis is not None else wrong.sum())


@dataclass
class Survival:
    """How much of the exact update of the weights is left in the type of the file."""

    exact: dict[str, float] = field(default_factory=dict)
    """Weight -> squared Frobenius norm of its exact update."""
    kept: dict[str, float] = field(default_factory=dict)
    """Weight -> inner product of the update that the file holds with the exact one."""
    rounded: dict[str, float] = field(default_factory=dict)
    """Weight -> how far rounding moved its values, 1 for the error of even chance: less where the update is small, since
    the base's own values are those of the type."""

    def share(self) -> float | None:
        """Of all weights together; None where the adapter changes none."""
        return _share(sum(self.kept.values()), sum(self.exact.values()))

    def of(self, name: str) -> float:
        found = _share(self.kept[name], self.exact[name])
        return 1.0 if found is None else found

    def worst(self) -> tuple[str, float] | None:
        """The weight of which least is left, among those that carry a tenth of the mean update or more."""
        if not self.exact:
            return None
        enough = 0.1 * sum(self.exact.values()) / len(self.exact)
        name = min((name for name, size in self.exact.items() if size >= enough), key=self.of)
        return name, self.of(name)


def _share(kept: float, exact: float) -> float | None:
    """1 - |1 - kept / exact|: what is made larger by rounding is as wrong as what is lost."""
    return 1.0 - abs(1.0 - kept / exact) if exact > 0.0 else None


@torch.no_grad()
def round_to_file_types(model: nn.Module, seen: Witness, type_of: TypeOf) -> Survival:
    """Link 2: gives every tensor the value that the file will hold, still in float32, and measures what that loses.

    Raises `CheckFailed` for a weight that is not finite, or overflows the type.
    """
    found = Survival()
    broken: list[str] = []
    done: set[int] = set()
    for name, tensor in named_tensors(model):
        if not tensor.is_floating_point() or id(tensor) in done:
            continue
        done.add(id(tensor))
        rounded = tensor.to(type_of(name)).to(tensor.dtype)
        if isinstance(tensor, nn.Parameter) and not bool(torch.isfinite(rounded).all()):
            broken.append(f"{name} ({str(type_of(name)).removeprefix('torch.')})")
        elif name in seen.originals:
            _measure(found, name, seen.originals[name].to(tensor.device), tensor, rounded, type_of(name))
        tensor.copy_(rounded)
    if broken:
        raise _failed("merged weights are not finite", broken, fix="merge with --dtype float32; else train again")
    return found


def _measure(found: Survival, name: str, original: Tensor, exact: Tensor, rounded: Tensor, dtype: torch.dtype) -> None:
    size = kept = moved = chance = 0.0
    parts = (tensor.reshape(-1).split(_PIECE) for tensor in (original, exact, rounded))
    for before, after, stored in zip(*parts, strict=True):
        update = after.double() - before.double()
        # where the type is narrower than the base's, the base is rounded too, which is no loss of the update
        left = stored.double() - before.to(dtype).double()
        size += float(update.square().sum())
        kept += float((update * left).sum())
        moved += float((stored.double() - after.double()).square().sum())
        chance += float((unit_in_last_place(after, dtype).double().square() / 12).sum())
    if size > 0.0:
        found.exact[name], found.kept[name] = size, kept
        found.rounded[name] = math.sqrt(moved / chance) if moved > 0.0 and chance > 0.0 else 1.0


def unit_in_last_place(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance between neighbouring numbers of `dtype` at each value."""
    _, exponent = torch.frexp(tensor)
    return torch.ldexp(torch.full_like(tensor, torch.finfo(dtype).eps), exponent - 1)


def require_same_bits(reloaded: nn.Module, written: Mapping[str, str]) -> None:
    """Link 3. Raises `CheckFailed` naming the tensors that came back otherwise from the folder."""
    now = digests(reloaded)
    wrong = [name for name in {**written, **now} if written.get(name) != now.get(name)]
    if wrong:
        raise _failed("weights came back from the written folder otherwise than they were merged", wrong)


def _failed(message: str, names: list[str], fix: str = "nothing was written; please report this") -> CheckFailed:
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    text = f"the merge could not be proven: {message}: {shown}"
    return CheckFailed("the merge could not be proven", faults=[Fault(text, fix=fix)])
