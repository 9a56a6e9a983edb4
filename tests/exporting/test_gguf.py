"""GGUF files are read by llama.cpp, and it answers as we do and not as the base does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from export_bases import FAMILIES, make_adapter, make_base

from peftcli.exporting.answers import TEXTS
from peftcli.exporting.export import ExportReport, export_adapter
from peftcli.exporting.gguf import llama_cpp
from peftcli.exporting.gguf.writing import TYPES

pytest.importorskip("gguf")
needs_llama_cpp = pytest.mark.skipif(not llama_cpp.is_here(), reason="llama.cpp (xllamacpp) is not installed")
LORA = {"type": "lora", "r": 4, "lora_alpha": 6}
SOME = {**LORA, "use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 3}}


def require_proven(report: ExportReport, least: int = len(TEXTS)) -> None:
    equal = re.match(rf"llama.cpp: (\d+) of {len(TEXTS)} greedy answers equal ours", report.proof)
    assert equal is not None, report.proof
    assert int(equal[1]) >= least, report.proof
    assert "of them are not the base's" in report.proof, report.proof


@needs_llama_cpp
@pytest.mark.parametrize("merged", [False, True])
def test_builtin(tmp_path: Path, merged: bool) -> None:
    adapter = make_adapter("builtin:tiny", tmp_path / "adapter", SOME)
    report = export_adapter(adapter, to="gguf", output=tmp_path / "out", merged=merged)
    assert report.files == ("model.gguf" if merged else "adapter.gguf",)
    require_proven(report)


@needs_llama_cpp
@pytest.mark.slow
@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_families(tmp_path: Path, family: str, merged: bool) -> None:
    base = make_base(family, tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter", LORA)
    require_proven(export_adapter(adapter, to="gguf", output=tmp_path / "out", merged=merged))


@needs_llama_cpp
@pytest.mark.slow
@pytest.mark.parametrize("merged", [False, True])
def test_a_base_that_writes_stories(ground: Path, tmp_path: Path, merged: bool) -> None:
    """Trained weights and the tokenizer that they came with, not drawn ones."""
    adapter = make_adapter(ground / "models" / "stories260K", tmp_path / "adapter", LORA)
    require_proven(export_adapter(adapter, to="gguf", output=tmp_path / "out", merged=merged))


@needs_llama_cpp
@pytest.mark.slow
@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("kind", TYPES)
def test_types(tmp_path: Path, kind: str, merged: bool) -> None:
    """Rounded weights answer otherwise now and then; where they do, `require_same` has held the token against ours."""
    adapter = make_adapter("builtin:tiny", tmp_path / "adapter", LORA)
    report = export_adapter(adapter, to="gguf", output=tmp_path / "out", merged=merged, kind=kind)
    assert report.type == kind
    require_proven(report, {"f32": len(TEXTS), "f16": 12, "bf16": 4, "q8_0": 4}[kind])
    print(kind, merged, report.proof)
    import gguf

    (name,) = report.files
    stored = {tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "out" / name).tensors}
    assert kind.upper() in stored
    assert stored <= {kind.upper(), "F32", "F16"}
