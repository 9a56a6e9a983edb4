"""`peft combine`: several adapters of one base as one LoRA."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from peftcli import folders
from peftcli.adapters.combining import BY_MAJORITY, DRAWING, HOWS, OF_ANY_RANK, SIGNS, THINNING, Share, Ways, distance
from peftcli.adapters.documents import read_own
from peftcli.adapters.layers import AdapterLayer, unwrapped
from peftcli.adapters.layers_method import LayersAdapter
from peftcli.adapters.pairs import Pairs
from peftcli.adapters.reading import AdapterTensors, install, load
from peftcli.adapters.registry import method, method_of_pairs, parse_method
from peftcli.adapters.saving import adapter_files
from peftcli.adapters.surgery import adapter_of, detach, disabled
from peftcli.errors import AdapterError, CheckFailed, RecipeError, StorageError
from peftcli.jobs.adapter_base import auto_class_of, base_of, load_base
from peftcli.jobs.combine_report import CombineReport, Part
from peftcli.jobs.convert import beside, probe
from peftcli.models.source import BaseSource
from peftcli.models.weights import is_linear
from peftcli.runs.as_written import require_as_written
from peftcli.runs.locating import Location, locate

DENSITY = 0.5
"""Share of the entries that is kept where none is asked for."""
_TOLERANCE = 1e-4
"""Largest difference between an update's factors and what its layer does, as a share: float32 rounding, and far below a
wrong scale or sign."""
_INPUTS = 4


@dataclass(frozen=True)
class _Updates:
    """An adapter's updates by layer, and what lies beside it."""

    location: Location
    updates: Mapping[str, Share]
    effect: float
    own_notes: Mapping[str, Any]


def combine_adapters(
    paths: Sequence[str | Path],
    *,
    weights: Sequence[float],
    how: str,
    output: str | Path,
    rank: int | None = None,
    density: float | None = None,
    majority_sign: str | None = None,
    seed: int | None = None,
    base: str | None = None,
) -> CombineReport:
    """Writes the combination of adapter or run folders, one weight each, to `output`, which must not exist.

    `how`: a name of `HOWS`. `rank`: of `svd` (default: the largest of the parts). `density`, `majority_sign`, `seed`: of
    the ways that thin out. `base`: where the base is (default: as recorded).
    Raises `RecipeError` (arguments), `StorageError`, `AdapterError` (adapters of several bases, with more than pairs of
    low rank, of ranks that do not fit), and every error of loading.
    """
    output = Path(output)
    _require_arguments(paths, weights, how, rank, density, majority_sign, seed)
    if output.exists():
        raise StorageError("the output already exists", where=str(output), fix="choose another --output, or remove it")
    locations = [locate(Path(path).expanduser(), base=base) for path in paths]
    source, auto_class = _one_base(locations)
    model = load_base(locations[0], source, auto_class=auto_class)
    opened = [_open(model, location, source, weight) for location, weight in zip(locations, weights, strict=True)]
    ways = Ways(
        rank=rank,
        density=DENSITY if density is None and how in THINNING else density or 1.0,
        majority_sign=majority_sign or SIGNS[0],
        generator=torch.Generator().manual_seed(seed or 0),
    )
    pairs, far = _combined(opened, how, ways)
    section, tensors = method(method_of_pairs()).of_pairs(model, Pairs(pairs))
    install(model, parse_method(section), AdapterTensors(output, tensors, {}), kept={}, trainable=False)
    # what will be written, and not what it was computed from, is held against the pairs
    _require_same_updates(model, pairs, "the combination")
    parts = tuple(
        Part(str(one.location.adapter), weight, len(one.updates), one.effect)
        for one, weight in zip(opened, weights, strict=True)
    )
    worst = max(far, key=lambda path: far[path])
    report = CombineReport(
        output=str(output),
        how=how,
        parts=parts,
        layers=len(pairs),
        ranks=tuple(sorted({len(a) for a, _ in pairs.values()})),
        density=ways.density if how in THINNING else None,
        seed=(seed or 0) if how in DRAWING else None,
        distance=far[worst],
        worst_layer=worst,
        effect=_effect(model),
    )
    return _write(model, opened, source, output, report)


def _require_arguments(
    paths: Sequence[str | Path],
    weights: Sequence[float],
    how: str,
    rank: int | None,
    density: float | None,
    majority_sign: str | None,
    seed: int | None,
) -> None:
    if how not in HOWS:
        raise RecipeError(f"--how {how} is no way to combine", fix=f"one of {', '.join(HOWS)}")
    if len(paths) < 2:
        raise RecipeError("one adapter is nothing to combine", fix="name two or more")
    if len(weights) != len(paths):
        raise RecipeError(
            f"{len(weights)} weights for {len(paths)} adapters", fix="--weights needs one for each, in their order"
        )
    if not all(math.isfinite(weight) and weight != 0 for weight in weights):
        raise RecipeError("a weight is zero or not finite", fix="leave that adapter out, or give it a weight")
    if majority_sign is not None and majority_sign not in SIGNS:
        raise RecipeError(f"--majority-sign {majority_sign} is unknown", fix=f"one of {', '.join(SIGNS)}")
    if density is not None and not 0.0 < density <= 1.0:
        raise RecipeError(f"--density {density:g} is no share", fix="above 0 and at most 1")
    useless = [
        name
        for name, value, users in (
            ("--rank", rank, {"svd"}),
            ("--density", density, THINNING),
            ("--majority-sign", majority_sign, BY_MAJORITY),
            ("--seed", seed, DRAWING),
        )
        if value is not None and how not in users
    ]
    if useless:
        raise RecipeError(f"{', '.join(useless)} has no effect with --how {how}", fix="leave it out")


def _one_base(locations: Sequence[Location]) -> tuple[BaseSource, str]:
    """The base and model class that all of them belong to."""
    sources = [base_of(location) for location in locations]
    first = sources[0]
    for location, source in zip(locations, sources, strict=True):
        if (source.location, source.revision) != (first.location, first.revision):
            raise AdapterError(
                f"these adapters belong to different bases: {first.name} and {source.name}",
                where=str(location.adapter),
                fix="where it is the same one at two places, name it: --model BASE",
            )
    classes = [auto_class_of(location, first) for location in locations]
    for location, auto_class in zip(locations, classes, strict=True):
        if auto_class != classes[0]:
            raise AdapterError(
                f"these adapters belong to different tasks: {classes[0]} and {auto_class}", where=str(location.adapter)
            )
    return first, classes[0]


@torch.no_grad()
def _open(model: nn.Module, location: Location, source: BaseSource, weight: float) -> _Updates:
    """The adapter's updates; the model is plain again afterwards."""
    load(model, location.adapter)
    try:
        # after loading, for a run folder's hashes are of no use to an adapter that does not load
        require_as_written(location, source)
        layers = _layers(model, str(location.adapter))
        shares = {path: _share(path, layer, weight, str(location.adapter)) for path, layer in layers.items()}
        exact = {path: (share.lora_A, share.lora_B * (share.coefficient / weight)) for path, share in shares.items()}
        _require_same_updates(model, exact, str(location.adapter))
        return _Updates(location, shares, _effect(model), dict(read_own(location.adapter).get("notes") or {}))
    finally:
        detach(model)


def _layers(model: nn.Module, where: str) -> dict[str, AdapterLayer]:
    adapter = adapter_of(model)
    layers = dict(adapter.layers) if isinstance(adapter, LayersAdapter) else {}
    covered = {id(tensor) for layer in layers.values() for tensor in layer.tensors().values()}
    rest = [entry.key for entry in adapter.entries() if id(entry.tensor) not in covered]
    if not layers or rest:
        raise _more_than_pairs(f"`{rest[0]}`" if rest else f"the method {adapter.config.name}", where)
    return layers


def _share(path: str, layer: AdapterLayer, weight: float, where: str) -> Share:
    factors = layer.low_rank_update()
    if factors is None or not is_linear(unwrapped(layer)):
        raise _more_than_pairs(f"the update of `{path}`", where)
    left, right = (factor.detach().float().cpu() for factor in factors)
    scale = layer.update_scale()
    # an update that is scaled to nothing stays nothing
    return Share(right, left / scale if scale else left, weight * (scale or 1.0))


def _more_than_pairs(what: str, where: str) -> AdapterError:
    return AdapterError(
        f"{what} is not a low-rank pair, and only those are combined",
        where=where,
        fix="`peft convert ADAPTER --to lora` first, where the method has that form",
    )


def _combined(
    opened: Sequence[_Updates], how: str, ways: Ways
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, float]]:
    """Layer -> pair, and layer -> distance from the weighted sum. Layers in the order in which adapters name them."""
    paths = list(dict.fromkeys(path for one in opened for path in one.updates))
    pairs, far = {}, {}
    for path in paths:
        shares = [one.updates[path] for one in opened if path in one.updates]
        ranks = sorted({share.rank for share in shares})
        if how not in OF_ANY_RANK and len(ranks) > 1:
            raise AdapterError(
                f"--how {how} needs one rank, and `{path}` has {' and '.join(map(str, ranks))}",
                where=path,
                fix="--how cat (exact) or --how svd take any",
            )
        pairs[path] = HOWS[how](shares, ways)
        far[path] = distance(pairs[path], shares)
    return pairs, far


@torch.no_grad()
def _require_same_updates(model: nn.Module, pairs: Mapping[str, tuple[Tensor, Tensor]], whose: str) -> None:
    """Each layer's own forward on random inputs against its pair: what the pair leaves out would be lost in silence."""
    generator = torch.Generator().manual_seed(0)
    adapter = adapter_of(model)
    assert isinstance(adapter, LayersAdapter)
    layers = dict(adapter.layers)
    assert layers.keys() == pairs.keys()
    for path, (lora_a, lora_b) in pairs.items():
        x = torch.randn(_INPUTS, lora_a.shape[1], generator=generator)
        done = layers[path](x) - layers[path].base_layer(x)
        said = x @ lora_a.T @ lora_b.T
        scale = max(float(said.abs().max()), float(layers[path].base_layer(x).abs().max()) * 1e-2)
        if not float((done - said).abs().max()) <= _TOLERANCE * scale:
            raise CheckFailed(
                f"`{path}` does something else than its pair of low rank says", where=whose,
                fix="`peft convert ADAPTER --to lora` first",
            )  # fmt: skip


def _effect(model: nn.Module) -> float:
    tuned = probe(model)
    with disabled(model):
        return float((tuned - probe(model)).abs().max())


def _write(
    model: nn.Module, opened: Sequence[_Updates], source: BaseSource, output: Path, report: CombineReport
) -> CombineReport:
    first = opened[0]
    shared = {
        key: value for key, value in first.own_notes.items() if all(one.own_notes.get(key) == value for one in opened)
    }
    companions, differing = _companions(opened)
    lost = sorted({key for one in opened for key in one.own_notes} - set(shared))
    remarks = [f"{name} differs between them: the first one's is beside the result" for name in differing]
    # a seed or a loss of one of them says nothing of the combination
    remarks += [f"they note different things of `{key}`: left out" for key in lost if key == "prompt"]
    parts = [{"adapter": part.adapter, "weight": part.factor} for part in report.parts]
    notes = shared | {"combined": {"how": report.how, "parts": parts, "distance": report.distance}}
    recorded = first.location.recorded
    name = recorded if recorded is not None and not recorded.startswith((".", "~")) else source.location
    contents = adapter_files(model, base_name=name, revision=first.location.revision, notes=notes)
    # the folder appears whole or not at all
    with folders.staged_folder(output) as staging:
        for file, data in contents.items():
            staging.write(file, data)
        for path in companions:
            staging.write(path.name, path.read_bytes())
    return replace(report, notes=tuple(remarks))


def _companions(opened: Sequence[_Updates]) -> tuple[list[Path], list[str]]:
    """Files beside the first adapter that go with the result, and the names of those that others have otherwise."""
    first, *others = (beside(one.location.adapter) for one in opened)
    differing = [
        path.name
        for path in first
        for other in others
        for theirs in other
        if theirs.name == path.name and theirs.read_bytes() != path.read_bytes()
    ]
    return first, list(dict.fromkeys(differing))
