"""`peft inspect`: what an adapter, run or model folder is, with the size and rank of each update."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from peftcli.adapters.documents import TENSORS_NAME, read_config, read_own
from peftcli.adapters.reading import load
from peftcli.adapters.subspaces import effective_rank
from peftcli.adapters.surgery import summary
from peftcli.adapters.tensor_file import read_header, read_tensors
from peftcli.adapters.updates import relative_norm, weight_changes
from peftcli.errors import AdapterError, ModelError, PeftcliError
from peftcli.jobs.adapter_base import base_of, load_base
from peftcli.models.base_config import load_config
from peftcli.models.source import BaseSource, resolve_base
from peftcli.reports.record import EvaluationRecord
from peftcli.reports.terminal import score_table
from peftcli.runs.as_written import require_as_written
from peftcli.runs.locating import Location, holds_a_model, locate, read_record
from peftcli.yaml_writing import flow


@dataclass(frozen=True)
class UpdateFacts:
    """How far an adapter moves one layer."""

    layer: str
    norm: float
    """Frobenius norm of the change of the weight."""
    relative: float | None
    """The same over the norm of the base's weight; None where the base is all zero."""
    effective_rank: float
    """exp of the entropy of the normalised singular values: how many directions carry the change."""


@dataclass(frozen=True)
class Inspection:
    """Facts of a folder; `updates` only where the base is at hand and the method has a weight-space form."""

    path: str
    kind: str
    facts: dict[str, Any]
    updates: tuple[UpdateFacts, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The document that `--json` prints."""
        return {**asdict(self), "updates": [asdict(item) for item in self.updates], "notes": list(self.notes)}


def inspect_path(path: str | Path, *, base: str | None = None) -> Inspection:
    """Looks at a folder. Raises `AdapterError` where nothing of ours or of the Hub's kind lies there."""
    path = Path(path).expanduser()
    if holds_a_model(path):
        return _inspect_model(path)
    location = locate(path, base=base)
    facts = adapter_facts(location)
    kind = "run" if location.run is not None and location.run == path else "adapter"
    if kind == "run" and location.run is not None:
        record = read_record(location.run)
        facts |= {key: record[key] for key in ("status", "steps", "seed", "evaluation", "warnings") if key in record}
    updates, notes = _updates(location)
    return Inspection(str(path), kind, facts, updates, notes)


def adapter_facts(location: Location) -> dict[str, Any]:
    """What the files of an adapter folder say (configuration, tensors, our own notes), without its base.

    Raises what reading them raises.
    """
    config = read_config(location.adapter)
    header = read_header(location.adapter / TENSORS_NAME)
    own = read_own(location.adapter)
    tensors = read_tensors(location.adapter / TENSORS_NAME)
    broken = [key for key, value in tensors.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    return {
        "method": own.get("method") or str(config["peft_type"]).lower(),
        "base": location.base,
        "task_type": config.get("task_type"),
        "parameters": sum(_count(shape) for _, shape in header.values()),
        "tensors": len(header),
        "dtypes": sorted({dtype for dtype, _ in header.values()}),
        "bytes": (location.adapter / TENSORS_NAME).stat().st_size,
        "fields": {key: value for key, value in config.items() if value not in (None, {}, [], False)},
        "fingerprint": (own.get("base") or {}).get("fingerprint"),
        "not_finite": broken,
    }


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _updates(location: Location) -> tuple[tuple[UpdateFacts, ...], tuple[str, ...]]:
    try:
        require_as_written(location)
        source = base_of(location)
        model = load_base(location, source)
        load(model, location.adapter)
        require_as_written(location, source)
    except PeftcliError as error:
        return (), (f"no update norms: {error.message}",)
    found = layer_updates(model)
    return found, () if found else (f"no update norms: {summary(model).method} has no weight-space form",)


def layer_updates(model: nn.Module) -> tuple[UpdateFacts, ...]:
    """Norm and effective rank of the change of each adapted weight of a model with an adapter."""
    return tuple(
        UpdateFacts(label, float(change.norm()), relative_norm(float(change.norm()), base), effective_rank(change))
        for label, change, base in weight_changes(model)
    )


def _inspect_model(path: Path) -> Inspection:
    source = resolve_base(str(path.absolute()), folder=Path.cwd())
    config = load_config(BaseSource(str(path), source.location, None, path))
    # the plain suffix: shards of a published model have many names
    weights = sorted(path.glob("*.safetensors"))
    if not weights:
        raise ModelError("no weights here", where=str(path), fix="download the model again")
    parameters = 0
    # from the headers: a model of any size is inspected at once
    for file in weights:
        try:
            parameters += sum(_count(shape) for _, shape in read_header(file).values())
        except AdapterError as error:
            raise ModelError(error.message, where=str(file), fix="download the model again") from error
    facts = {
        "model_type": config.model_type,
        "architectures": config.architectures,
        "parameters": parameters,
        "bytes": sum(file.stat().st_size for file in weights),
        "tied_embeddings": bool(getattr(config, "tie_word_embeddings", False)),
        "files": [file.name for file in weights],
        **_origin(path),
    }
    return Inspection(str(path), "model", facts)


def _origin(path: Path) -> dict[str, Any]:
    """What was merged into a model, and of which base, as the merge noted it."""
    own = read_own(path)
    return {"merged": own.get("merged"), "base": (own.get("base") or {}).get("name")} if "merged" in own else {}


SHOWN_UPDATES = 20
_SHOWN_APART = ("fields", "fingerprint", "evaluation")


def inspection_text(found: Inspection) -> str:
    """What `peft inspect` prints."""
    lines = [f"{found.path}: {found.kind}"]
    for key, value in found.facts.items():
        if key not in _SHOWN_APART and value not in (None, [], {}):
            lines.append(f"  {key:<16} {_fact(value)}")
    for key, value in (found.facts.get("fields") or {}).items():
        lines.append(f"  {key:<24} {flow(value)}")
    if found.facts.get("evaluation"):
        lines += ["", score_table(EvaluationRecord.model_validate(found.facts["evaluation"]))]
    if found.updates:
        lines += ["", f"  {'update':<44} {'norm':>9} {'relative':>9} {'rank':>6}"]
        largest = sorted(found.updates, key=_by_size)[:SHOWN_UPDATES]
        lines += [f"  {u.layer:<44} {u.norm:>9.4g} {_percent(u.relative):>9} {u.effective_rank:>6.1f}" for u in largest]
        if len(found.updates) > SHOWN_UPDATES:
            lines.append(f"  ... and {len(found.updates) - SHOWN_UPDATES} more (--json has all)")
    return "\n".join([*lines, *(f"note: {note}" for note in found.notes)])


def _fact(value: Any) -> str:
    """Counts with their thousands marked, texts as they are, all else as YAML has it."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return value if isinstance(value, str) else flow(value)


def _by_size(update: UpdateFacts) -> tuple[bool, float]:
    """Largest relative change first; those of a base that is all zero after them, by their norm."""
    return update.relative is None, -(update.norm if update.relative is None else update.relative)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"
