"""What is seen of a model before a merge, and what must be true of its weights afterwards.

Three links, none of which shares code with the merge:
  1. the wrapped modules' own forward on random vectors == the plain modules' with the merged weights (float64);
     every tensor that no wrapper stands on has its old bits
  2. merged weight -> type of the file: how much of the exact update is left, weight by weight (`merge_rounding`)
  3. bits of every tensor in memory == bits of the folder, read back
"""

from __future__ import annotations

import contextlib
import hashlib
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from peftcli.adapters.base_modules import named_base_modules, parent_of
from peftcli.adapters.layers import unwrapped
from peftcli.adapters.layers_method import LayersAdapter
from peftcli.adapters.surgery import adapter_of
from peftcli.errors import CheckFailed, Fault
from peftcli.models.calling import token_inputs
from peftcli.models.streamed import StreamedWeight
from peftcli.models.weights import UnadaptedWeight, is_linear, weight_view

PROBES = 16
RELATIVE = 2e-5
"""Of a row's size: what float32 may lose where the same sum is taken in two ways."""
ABSOLUTE = 1e-6
"""Of the largest row, for rows that are nearly zero."""
_CHUNK = 4096

TypeOf = Callable[[str], torch.dtype]
"""The key of a tensor -> the type in which the merged file holds it."""


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
    found = hashlib.sha256(str(tuple(tensor.shape)).encode())
    # what lies in a file is never held whole: the largest table of a model may be a quarter of it
    parts = (rows for _, rows in tensor.pieces()) if isinstance(tensor, StreamedWeight) else [tensor.detach().cpu()]
    for part in parts:
        # as bytes: bfloat16 has no numpy type
        found.update(part.contiguous().reshape(-1).view(torch.uint8).numpy().data)
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
    # in the types of the files: half the memory of float32 copies, and not a bit less
    originals = {name: t.detach().to(type_of(name), copy=True).cpu() for name, t in named_tensors(model) if name in own}
    probes = {path: answer for path, site in sites.items() if (answer := probe(path, site)) is not None}
    rest = {path: site for path, site in sites.items() if path not in probes}
    return Witness(digests(model), frozenset(own), originals, probes, parameters_in_use(model, rest, rows))


@torch.no_grad()
def probe(path: str, module: nn.Module, *, precise: bool = True) -> Tensor | None:
    """Answers of a linear layer to random vectors and to zero, (probes + 1, out), or of an embedding to every token,
    projected on random directions, (tokens, probes). None for a module of another kind. `precise`: in float64."""
    base = unwrapped(module)
    # the path as seed: every layer its own vectors, the same before and after the merge
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(path.encode()).digest()[:7], "little"))
    with in_float64(module, precise):
        device = next(base.parameters()).device
        if is_linear(base):
            width = weight_view(base).shape[1]
            vectors = torch.randn(PROBES, width, generator=generator, dtype=torch.float64)
            # and zero, which shows the bias alone
            vectors = torch.cat([vectors, vectors.new_zeros(1, width)]).to(device)
            answer = module(vectors)
            return answer.double().cpu() if isinstance(answer, Tensor) else None
        if isinstance(base, nn.Embedding):
            directions = torch.randn(base.embedding_dim, PROBES, generator=generator, dtype=torch.float64).to(device)
            ids = torch.arange(base.num_embeddings, device=device)
            with _looking_up(module, base, ids[:1]):
                return torch.cat([(module(part).double() @ directions).cpu() for part in ids.split(_CHUNK)])
    return None


@contextlib.contextmanager
def _looking_up(module: nn.Module, base: nn.Embedding, ids: Tensor) -> Iterator[None]:
    """Inside, the embedding takes plain ids: as it is, or, where its own forward makes its ids of something else
    (positions of a mask in OPT and BART), with torch's lookup in its place."""
    try:
        if module(ids).shape == (*ids.shape, base.embedding_dim):
            yield
            return
    except (IndexError, TypeError, ValueError, RuntimeError):
        pass
    base.forward = types.MethodType(nn.Embedding.forward, base)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del base.forward


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


def parameters_in_use(model: nn.Module, sites: Mapping[str, nn.Module], rows: list[Tensor]) -> dict[str, Tensor]:
    """Name -> projection of every parameter at `sites` as a forward pass over the prompts sees it."""
    found: dict[str, Tensor] = {}

    def look(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            for name, value in module.named_parameters():
                label = f"{path}.{name}" if path else name
                # the first time that a module runs is enough: parameters do not change between prompts
                if label not in found:
                    found[label] = projection(label, value)

        return hook

    handles = [unwrapped(site).register_forward_pre_hook(look(path)) for path, site in sites.items()]
    try:
        with torch.no_grad():
            # no prompt is run where every adapted module could be probed by itself
            for row in rows if handles else []:
                model(**token_inputs(model, row))
    finally:
        for handle in handles:
            handle.remove()
    for path, site in sites.items():
        for name, value in _Reader()(site).items():
            label = f"{path}.{name}" if path else name
            found.setdefault(label, projection(label, value))
    return found


class _Reader(nn.Module):
    """Reads the parameters of a module as one that computes with them itself does (the convolution of Mamba's mixer is
    never called)."""

    def forward(self, site: nn.Module) -> dict[str, Tensor]:
        shown = {name: getattr(site, name) for name, _ in unwrapped(site).named_parameters(recurse=False)}
        return {name: value for name, value in shown.items() if not isinstance(value, UnadaptedWeight)}


def projection(label: str, value: Tensor) -> Tensor:
    """A tensor's last dimension projected on random directions; one-dimensional tensors whole. float64, on the CPU."""
    if value.dim() < 2:
        # a vector is small, and a projection would hide which value differs
        return value.detach().double().cpu()
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(label.encode()).digest()[:7], "little"))
    directions = torch.randn(value.shape[-1], PROBES, generator=generator, dtype=torch.float64).to(value.device)
    if value.dim() == 2:
        return (value.detach().double() @ directions).cpu()
    # one matrix after the other: all experts of a layer need not fit into memory twice
    return torch.stack([(value[index].detach().double() @ directions).cpu() for index in range(len(value))])


# -- after the merge -----------------------------------------------------------------------------------------------


def require_same_function(model: nn.Module, seen: Witness) -> None:
    """Link 1, on the plain model. Raises `CheckFailed` naming what is not what the adapter's forward says."""
    faults: list[str] = []
    for path, before in seen.probes.items():
        after = probe(path, module_at(model, path))
        assert after is not None, "the same kind of module as before"
        axis = 0 if is_linear(module_at(model, path)) else 1
        faults += [f"{path} ({count} of its rows)"] if (count := apart(before, after, axis)) else []
    tensors = dict(named_tensors(model))
    for name, before in seen.in_use.items():
        count = apart(before, projection(name, tensors[name]), -1 if before.dim() > 1 else None)
        faults += [f"{name} ({count} of its rows)"] if count else []
    if faults:
        raise failed("merged weights are not what the adapter computes", faults)
    require_untouched(seen.bits, digests(model), seen.may_change)


def require_untouched(before: Mapping[str, str], now: Mapping[str, str], may_change: Collection[str]) -> None:
    """Raises `CheckFailed` naming the weights that have other bits and that no wrapper stands on."""
    stray = [name for name in now if name not in may_change and now[name] != before.get(name)]
    if stray:
        raise failed("weights that the adapter does not touch have changed", stray)


def apart(before: Tensor, after: Tensor, axis: int | None) -> int:
    """How many rows differ beyond rounding; not-a-number counts. `axis`: over which a row's size is taken."""
    size = after.abs() if axis is None else after.square().mean(axis, keepdim=True).sqrt()
    # relative to the row, and a little of the largest: a row that is nearly zero is rounded by the sums around it
    allowed = RELATIVE * size + ABSOLUTE * size.nan_to_num(0.0, 0.0, 0.0).max() + 1e-12
    # `not <=`, so that NaN counts as a difference
    wrong = ~((before - after).abs() <= allowed) | ~torch.isfinite(after)
    return int(wrong.any(axis).sum() if axis is not None else wrong.sum())


def require_same_bits(reloaded: nn.Module, written: Mapping[str, str]) -> None:
    """Link 3. Raises `CheckFailed` naming the tensors that came back otherwise from the folder."""
    now = digests(reloaded)
    wrong = [name for name in {**written, **now} if written.get(name) != now.get(name)]
    if wrong:
        raise failed("weights did not come back from the written folder as they were merged", wrong)


def failed(message: str, names: list[str], fix: str = "nothing was written; please report this") -> CheckFailed:
    """The error of a proof that did not hold; the first three names are shown."""
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    text = f"the merge could not be proven: {message}: {shown}"
    return CheckFailed("the merge could not be proven", faults=[Fault(text, fix=fix)])
