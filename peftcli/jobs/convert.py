"""`peft convert`: another tool's adapter in our format, or any mergeable adapter as LoRA with the stated error."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from peftcli import folders
from peftcli.adapters.base_modules import named_base_parameters
from peftcli.adapters.config import MethodConfig
from peftcli.adapters.documents import (
    COMPANIONS_NAME,
    CONFIG_NAME,
    OWN_NAME,
    TENSORS_NAME,
    read_config,
    read_document,
    read_own,
)
from peftcli.adapters.foreign import library_of
from peftcli.adapters.layers import unwrapped
from peftcli.adapters.low_rank import LayerCut, LowRank, as_low_rank, values_of
from peftcli.adapters.merging import merge
from peftcli.adapters.reading import AdapterTensors, has_other_keys, install, load
from peftcli.adapters.registry import method_of_pairs, parse_method
from peftcli.adapters.saving import adapter_files
from peftcli.adapters.surgery import adapter_of, disabled, summary
from peftcli.errors import AdapterError, RecipeError, StorageError
from peftcli.jobs.adapter_base import auto_class_of, base_of, load_base
from peftcli.models.auto_class import WRITES_ON, purpose_named
from peftcli.models.load import load_model
from peftcli.models.own_files import is_own_file
from peftcli.models.source import BaseSource, resolve_base
from peftcli.models.structure import embeddings_are_tied, input_embedding
from peftcli.models.weights import weight_view
from peftcli.runs.as_written import require_as_written
from peftcli.runs.locating import Location, locate

TARGETS = (method_of_pairs(), "peft")
# enough for every token to attend to others, and little enough for any base on a CPU
PROBE_ROWS, PROBE_LENGTH = 4, 32
_ADAPTER_SUFFIXES = (".safetensors", ".bin")
_OURS = {CONFIG_NAME, TENSORS_NAME, OWN_NAME, COMPANIONS_NAME, "README.md"}


@dataclass(frozen=True)
class ConvertReport:
    """What was written and how near it is. Differences are of logits on random tokens, the largest in absolute value."""

    output: str
    method: str
    written_as: str
    parameters: int
    max_difference: float
    adapter_effect: float
    """The same difference between base and base + adapter."""
    relative_error: float = 0.0
    """Of all updates together, in Frobenius norm; 0 where nothing was approximated."""
    layers: tuple[LayerCut, ...] = ()
    kept_whole: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The document that `--json` prints."""
        cuts = [{**asdict(cut), "relative_error": cut.relative_error} for cut in self.layers]
        lists = {"kept_whole": list(self.kept_whole), "notes": list(self.notes)}
        return {**asdict(self), "layers": cuts, **lists}


@dataclass(frozen=True)
class _ConversionSource:
    """The adapter to convert, and its base."""

    folder: Path
    source: BaseSource
    auto_class: str
    location: Location | None
    """None of an AdapterHub folder."""

    def base(self) -> nn.Module:
        if self.location is None:
            return load_model(self.source, auto_class=self.auto_class)
        return load_base(self.location, self.source, auto_class=self.auto_class)

    @property
    def base_name(self) -> str:
        """As the adapter names it; a folder whose name depends on where one stands by its whole path."""
        recorded = None if self.location is None else self.location.recorded
        if recorded is None or (self.source.is_local and recorded.startswith((".", "~"))):
            return _shown(self.source)
        return recorded

    @property
    def revision(self) -> str | None:
        """Of a base from the Hub, as the adapter has it."""
        return None if self.location is None else read_config(self.folder).get("revision")

    @property
    def notes(self) -> dict[str, Any]:
        """What the adapter tells its users, such as how its prompts looked."""
        return {} if self.location is None else dict(read_own(self.folder).get("notes") or {})


def convert_adapter(
    path: str | Path, *, to: str, output: str | Path, r: int | None = None, base: str | None = None
) -> ConvertReport:
    """Writes the adapter of an adapter or run folder in another form to `output`, which must not exist.

    `to`: `peft` (an AdapterHub adapter, or one whose keys another tool named, in our format) or `lora` (any mergeable
    adapter; `r`: its rank). `base`: where the base is (default: as recorded).
    Raises `RecipeError`, `StorageError`, `MergeError` (no weight-space form), and every error of loading.
    """
    output = Path(output)
    if to not in TARGETS:
        raise RecipeError(f"cannot convert to {to!r}", fix=f"--to {' or --to '.join(TARGETS)}")
    if to == "peft" and r is not None:
        raise RecipeError("--r has no effect with --to peft", fix="it is the rank of --to lora")
    if output.exists():
        raise StorageError("the output already exists", where=str(output), fix="choose another --output, or remove it")
    given = _given(Path(path).expanduser(), base)
    model = given.base()
    # asked with the model built: only its module names say which prefix of a key is a tool's own
    if to == "peft" and given.location is not None and not has_other_keys(model, given.folder):
        raise RecipeError(
            "the adapter is already in this format", where=str(given.folder), fix="--to lora, or use it as it is"
        )
    load(model, given.folder, converting=True)
    if given.location is not None:
        # after loading, for a run folder's hashes are of no use to an adapter that does not load
        require_as_written(given.location, given.source)
    method = summary(model).method
    # the answers to compare with are taken first: a merge changes the model in place
    tuned = probe(model)
    with disabled(model):
        effect = float((tuned - probe(model)).abs().max())
    if to == "peft":
        report = _written(model, given, output, method, tuned, effect, None)
    else:
        low_rank = _low_rank(model, given, r)
        # two whole models at a time would be the most that this command holds; the merged one is not needed any more
        del model
        converted = given.base()
        # through the same reader as a file: what is compared below is what a user will load
        parts = AdapterTensors(output / TENSORS_NAME, low_rank.tensors, {})
        install(converted, parse_method(low_rank.section), parts, kept={}, trainable=False)
        report = _written(converted, given, output, method, tuned, effect, low_rank)
    return report


def _given(path: Path, base: str | None) -> _ConversionSource:
    document = read_document(path) if (path / CONFIG_NAME).exists() else {}
    library = library_of(document)
    if library is None:
        location = locate(path, base=base)
        source = base_of(location)
        return _ConversionSource(location.adapter, source, auto_class_of(location, source), location)
    name = base if base is not None else document.get(library.base_field)
    if not isinstance(name, str) or not name:
        raise AdapterError("the adapter does not say which base it belongs to", where=str(path), fix="add --model BASE")
    # a name that the user gives is relative to where they stand, one in a file to the file
    source = resolve_base(name, folder=Path.cwd() if base is not None else path)
    purpose = purpose_named(str(document.get("model_class", ""))) or WRITES_ON
    return _ConversionSource(path, source, purpose.auto_class, None)


def _shown(source: BaseSource) -> str:
    """The base as the written adapter names it: a folder by its whole path."""
    return source.location if source.is_local and not source.name.startswith("builtin:") else source.name


def _low_rank(model: nn.Module, given: _ConversionSource, r: int | None) -> LowRank:
    """Merges the adapter in memory and cuts the change of each weight."""
    # the base once more: after `merge` its own values are gone
    plain = given.base()
    before, tied = values_of(plain), embeddings_are_tied(plain)
    del plain
    merge(model)
    return as_low_rank(model, before, r=r, tied_before=tied)


def _written(
    model: nn.Module,
    given: _ConversionSource,
    output: Path,
    method: str,
    tuned: Tensor,
    effect: float,
    low_rank: LowRank | None,
) -> ConvertReport:
    difference = float((probe(model) - tuned).abs().max())
    found = summary(model)
    report = ConvertReport(
        output=str(output),
        method=method,
        written_as=found.method,
        # counted on the model, so that rows saved with the adapter are in it
        parameters=found.total - sum(parameter.numel() for _, parameter in named_base_parameters(model)),
        max_difference=difference,
        adapter_effect=effect,
        relative_error=low_rank.relative_error if low_rank else 0.0,
        layers=tuple(low_rank.cuts) if low_rank else (),
        kept_whole=tuple(low_rank.kept_whole) if low_rank else (),
        notes=_notes(adapter_of(model).config),
    )
    notes = given.notes | {
        "converted": {"from": method, "relative_error": report.relative_error, "max_difference": difference}
    }
    contents = adapter_files(model, base_name=given.base_name, revision=given.revision, notes=notes)
    # the folder appears whole or not at all
    with folders.staged_folder(output) as staging:
        for name, data in contents.items():
            staging.write(name, data)
        # an AdapterHub folder has files of its own beside it
        for companion in beside(given.folder) if given.location is not None else []:
            staging.write(companion.name, companion.read_bytes())
    return report


def _notes(config: MethodConfig) -> tuple[str, ...]:
    """What the written adapter means to peftcli alone, although Hugging Face PEFT can read its files."""
    odd = [
        f"{name}: {str(value).lower()}" for name, value in config.beyond_peft.items() if getattr(config, name) is value
    ]
    if not odd or not config.in_peft:
        return ()
    return (f"Hugging Face PEFT has no place for {', '.join(odd)}: it reads the files, but answers differently",)


def beside(folder: Path) -> list[Path]:
    """Tokenizer, template and generation config that lie beside an adapter of ours."""
    return [
        path
        for path in sorted(folder.iterdir())
        if is_own_file(path, folder)
        and path.name not in _OURS
        and path.suffix not in _ADAPTER_SUFFIXES
        and not path.name.startswith(".")
    ]


def probe(model: nn.Module) -> Tensor:
    """Float32 logits on random tokens, the same for every model of one vocabulary."""
    embedding = input_embedding(model)
    assert embedding is not None, "every base that is loaded has a token embedding"
    vocabulary = weight_view(unwrapped(embedding)).shape[0]
    # a fixed seed: the same tokens before and after, and in every run of the command
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (PROBE_ROWS, PROBE_LENGTH), generator=generator)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if getattr(model.config, "is_encoder_decoder", False):
        # another length than the encoder's, so that one cannot stand in for the other unnoticed
        inputs["decoder_input_ids"] = ids[:, : PROBE_LENGTH // 2]
    with torch.inference_mode():
        found: Tensor = model(**inputs).logits.float()
    return found


def convert_text(report: ConvertReport) -> str:
    """What `peft convert` prints."""
    lines = [f"{report.method} written as {report.written_as} into {report.output} ({report.parameters:,} parameters)"]
    if report.layers:
        worst = max(report.layers, key=lambda cut: cut.relative_error)
        ranks = sorted({cut.rank for cut in report.layers})
        shown = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
        lines += [
            f"{len(report.layers)} layers of rank {shown}; relative error of the updates {report.relative_error:.3g}",
            f"largest in one layer: {worst.relative_error:.3g} ({worst.layer})",
        ]
    if report.kept_whole:
        lines.append(f"kept whole, not cut: {', '.join(report.kept_whole)}")
    lines += [f"note: {note}" for note in report.notes]
    lines.append(
        f"logits differ by {report.max_difference:.3g} at most (the adapter itself changes them by "
        f"{report.adapter_effect:.3g})"
    )
    return "\n".join(lines)
