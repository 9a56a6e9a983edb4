"""`peft export`: the adapter, or the merged model, in another tool's format, tried by that tool where it is installed."""

from __future__ import annotations

import importlib.util
import shutil
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from peftcli import files, folders
from peftcli.adapters.reading import load
from peftcli.adapters.surgery import adapter_of
from peftcli.errors import AdapterWarning, CheckFailed, DeviceError, RecipeError, StorageError
from peftcli.exporting import adapterhub, hugging_face, mlx, ollama
from peftcli.exporting.answers import SLACK, TEXTS, OwnAnswers, differs_from_base, own_answers, require_same
from peftcli.exporting.gguf import adapter as gguf_adapter
from peftcli.exporting.gguf import llama_cpp
from peftcli.exporting.gguf import model as gguf_model
from peftcli.exporting.gguf.layouts import layout_of
from peftcli.exporting.gguf.writing import TYPES
from peftcli.exporting.plain_pairs import plain_pairs
from peftcli.jobs.adapter_base import load_base, tokens_beside
from peftcli.jobs.convert import probe
from peftcli.jobs.merge import answer_stops, merge_adapter
from peftcli.jobs.opening import OpenModel
from peftcli.jobs.whole_models import open_to_answer
from peftcli.models.base_config import load_config
from peftcli.models.source import BaseSource, resolve_base
from peftcli.models.tokenizer import load_tokenizer
from peftcli.runs.locating import holds_a_model, no_run

TARGETS = ("peft", "adapterhub", "gguf", "ollama", "mlx")
_GGUF = ("gguf", "ollama")
_ADAPTERS = ("peft", "adapterhub", "mlx")
"""Formats of an adapter alone."""
_MERGED = "merged"
_MOST_TOLD = 8
"""Added tokens that are named."""
_LARGEST_TRIAL_BYTES = 4 << 30
"""A base up to this size is written for llama.cpp too, to try an adapter beside it."""
_PROBE_TOLERANCE = 1e-4
_ADAPTERHUB_TOLERANCE = 1e-5


@dataclass(frozen=True)
class ExportReport:
    """What was written, and what the tool that it is for said of it."""

    output: str
    to: str
    files: tuple[str, ...]
    merged: bool
    type: str | None
    """Of the matrices in a GGUF file."""
    proof: str
    """What was compared; starts with "not run" where the tool is not here."""
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints, as plain data."""
        return {**asdict(self), "files": list(self.files), "notes": list(self.notes)}


def export_adapter(
    path: str | Path,
    *,
    to: str,
    output: str | Path,
    base: str | None = None,
    merged: bool = False,
    kind: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> ExportReport:
    """Writes the adapter of a run or adapter folder (or a whole model) for another tool to `output`, which must not exist.

    `merged`: the model with the adapter baked in instead of the adapter. `kind`: type of the matrices in a GGUF file.
    Raises `RecipeError`, `DeviceError` (a package is missing), `AdapterError` (the format has no place for something),
    `CheckFailed` (the tool answers otherwise: nothing is written), and every error of loading and merging.
    """
    path, output = Path(path).expanduser(), Path(output)
    whole = holds_a_model(path)
    if whole and to in _ADAPTERS:
        raise no_run(path)
    _check(to, merged=merged or whole, kind=kind)
    if output.exists():
        raise StorageError("the output already exists", where=str(output), fix="choose another --output, or remove it")
    say("opening the adapter and its base")
    opened = open_to_answer(path, base=base, with_base=whole and base is not None)
    if opened.device != "cpu" or opened.dtype != torch.float32:
        opened.model.to(device="cpu", dtype=torch.float32)
    with folders.staged_folder(output) as staging:
        type_, proof, notes = _Export(opened, path, to, kind, merged or whole, base, staging, say).write()
        names = tuple(sorted(staging.files))
    return ExportReport(str(output), to, names, merged or whole, type_, proof, (*notes, *_added_tokens(opened)))


def _added_tokens(opened: OpenModel) -> list[str]:
    """That the tokenizer beside the adapter is not the base's own, and what it has more."""
    added = None if opened.location.whole else tokens_beside(opened.location, opened.source)
    if added is None:
        return []
    names = ", ".join(f"`{name}`" for name in opened.tokenizer.convert_ids_to_tokens(list(added.ids[:_MOST_TOLD])))
    more = f" and {len(added.ids) - _MOST_TOLD} more" if len(added.ids) > _MOST_TOLD else ""
    return [f"the tokenizer has tokens that the base's lacks, and the model needs {added.rows} rows: {names}{more}"]


def _check(to: str, *, merged: bool, kind: str | None) -> None:
    if to not in TARGETS:
        raise RecipeError(f"cannot export to {to!r}", fix=f"one of {', '.join(TARGETS)}")
    if merged and to not in _GGUF:
        raise RecipeError(f"--to {to} takes an adapter, not a whole model", fix="`peft merge` writes the whole model")
    if kind is not None and to not in _GGUF:
        raise RecipeError(f"--type has no effect with --to {to}", fix="it is for gguf and ollama")
    if kind is not None and kind not in TYPES:
        raise RecipeError(f"unknown type {kind!r}", fix=f"one of {', '.join(TYPES)}")
    if to in _GGUF and importlib.util.find_spec("gguf") is None:
        raise DeviceError(f"--to {to} needs the package gguf", fix="pip install 'peftcli[export]'")


@dataclass
class _Export:
    """One export under way."""

    opened: OpenModel
    path: Path
    to: str
    kind: str | None
    merged: bool
    base: str | None
    staging: folders.StagedFolder
    say: Callable[[str], None]

    @property
    def where(self) -> str:
        return str(self.opened.location.adapter)

    def write(self) -> tuple[str | None, str, tuple[str, ...]]:
        """Type of the matrices, proof, notes."""
        if self.to == "peft":
            config = adapter_of(self.opened.model).config
            notes = hugging_face.write_folder(self.staging, self.opened.location.adapter, config)
            return None, "not run: Hugging Face PEFT; the two files are copied as they are", tuple(notes)
        if self.to == "mlx":
            return None, self._mlx(), ()
        if self.to == "adapterhub":
            return None, *self._adapterhub()
        return self._llama_cpp()

    def _mlx(self) -> str:
        pairs = plain_pairs(self.opened.model, self.where)
        mlx.write_folder(self.staging, self.opened.model, pairs, self.opened.location.recorded, self.where)
        return self._read_again(self._plain_base(), "mlx-lm", _PROBE_TOLERANCE)

    def _adapterhub(self) -> tuple[str, tuple[str, ...]]:
        plain, location = self._plain_base(), self.opened.location
        adapter = adapter_of(self.opened.model)
        notes = adapterhub.write_folder(self.staging, plain, adapter, location.recorded, self.where)
        proof = self._read_again(plain, "adapters, which needs another release of transformers", _ADAPTERHUB_TOLERANCE)
        return proof, tuple(notes)

    def _plain_base(self) -> nn.Module:
        return load_base(self.opened.location, self.opened.source, auto_class=self.opened.auto_class)

    def _read_again(self, plain: nn.Module, tool: str, tolerance: float) -> str:
        """What was written, put on a plain base by the rules of the tool that reads it, gives the same logits."""
        with torch.inference_mode():
            tuned = probe(self.opened.model)
        with warnings.catch_warnings():
            # what is odd about the adapter was told when it was opened; of the copy, oddities are the format's
            warnings.simplefilter("ignore", AdapterWarning)
            load(plain, self.staging.path, converting=True)
        difference = float((probe(plain) - tuned).abs().max())
        if not difference <= tolerance * max(1.0, float(tuned.abs().max())):
            raise CheckFailed(
                f"read again by the rules of {tool.partition(',')[0]} the files give logits that differ by "
                f"{difference:.3g}; nothing was written",
                where=self.where,
                fix="report this",
            )
        return f"not run: {tool}; read again by its rules, logits differ by {difference:.2g} at most"

    def _llama_cpp(self) -> tuple[str | None, str, tuple[str, ...]]:
        stops = answer_stops(self.opened)
        self.say("answering here")
        own = own_answers(self.opened, stops)
        if self.merged:
            kind, proof = self._whole(own, stops)
        else:
            kind, proof = self._beside(own, stops)
        notes: tuple[str, ...] = ()
        if self.to == "ollama":
            notes = ollama.write_modelfile(self.staging, self.opened, merged=self.merged, stops=stops)
        return kind, proof, notes

    def _whole(self, own: OwnAnswers, stops: list[int]) -> tuple[str, str]:
        source, merged = self.opened.source, None
        if not self.opened.location.whole:
            self.say("merging")
            merged = self.staging.path / f"{files.TEMPORARY_PREFIX}{_MERGED}"
            merge_adapter(self.path, output=merged, base=self.base)
            source = resolve_base(str(merged), folder=Path.cwd())
        self.say("writing model.gguf")
        with self.staging.scratch() as scratch:
            target = scratch / gguf_model.NAME
            kind = self._write_model(target, source, stops)
            proof = self._try(target, None, own, kind, vocabulary=True)
        if merged is not None:
            shutil.rmtree(merged)
        return kind, proof

    def _write_model(self, target: Path, source: BaseSource, stops: list[int], kind: str | None = None) -> str:
        config = load_config(source)
        return gguf_model.write_model(
            target, source, config, load_tokenizer(source), layout_of(config, self.where), stops=stops,
            kind=kind or self.kind, name=self.path.name,
        )  # fmt: skip

    def _beside(self, own: OwnAnswers, stops: list[int]) -> tuple[str, str]:
        kind = self.kind or "f32"
        pairs = plain_pairs(self.opened.model, self.where)
        config = load_config(self.opened.source)
        self.say("writing adapter.gguf")
        with self.staging.scratch() as scratch:
            target = scratch / gguf_adapter.NAME
            gguf_adapter.write_adapter(target, pairs, layout_of(config, self.where), config, kind, self.where)
            if not llama_cpp.is_here():
                return kind, _NOT_RUN
            size = 4 * sum(parameter.numel() for parameter in self.opened.model.parameters())
            if size > _LARGEST_TRIAL_BYTES:
                return kind, "not run: the base is too large to be written for llama.cpp just to try the adapter"
            trial = self.staging.path / f"{files.TEMPORARY_PREFIX}base.gguf"
            self._write_model(trial, self.opened.source, stops, "f32")
            proof = self._try(trial, target, own, kind, vocabulary=False)
            trial.unlink()
        return kind, proof

    def _try(self, model: Path, adapter: Path | None, own: OwnAnswers, kind: str, *, vocabulary: bool) -> str:
        if not llama_cpp.is_here():
            return _NOT_RUN
        self.say("asking llama.cpp")
        said = llama_cpp.ask(model, TEXTS if vocabulary else (), own.rows, _new_tokens(own), adapter)
        if vocabulary:
            self._require_same_ids(said.ids)
        same = require_same(self.opened.model, own, said.answers, SLACK[kind], str(self.staging.target))
        return f"llama.cpp: {same}{differs_from_base(own, said.answers)}"

    def _require_same_ids(self, ids: list[list[int]]) -> None:
        for text, theirs in zip(TEXTS, ids, strict=True):
            ours = list(self.opened.tokenizer(text).input_ids)
            if ours != theirs:
                raise CheckFailed(
                    f"llama.cpp cuts text into other tokens ({text!r}: {theirs[:8]} there, {ours[:8]} here); "
                    "nothing was written",
                    where=self.where,
                    fix="export the adapter alone",
                )


_NOT_RUN = "not run: llama.cpp is not here (pip install 'peftcli[export]')"


def _new_tokens(own: OwnAnswers) -> int:
    return max(map(len, own.tuned))


def export_text(report: ExportReport) -> str:
    """What `peft export` prints."""
    what = "merged model" if report.merged else "adapter"
    kind = f", {report.type}" if report.type else ""
    lines = [f"{what} for {report.to} in {report.output} ({', '.join(report.files)}{kind})", f"proof: {report.proof}"]
    return "\n".join([*lines, *(f"note: {note}" for note in report.notes)])
