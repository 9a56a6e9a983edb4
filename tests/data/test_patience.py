"""Rows that take far longer than rows do are told of while they do, by their places."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from peftcli.data.config import DataConfig
from peftcli.data.encode import source
from peftcli.data.encode.encoder import RowEncoder
from peftcli.data.prepare import prepare

ROWS = [{"prompt": f"what is {number}?", "completion": f" it is {number}"} for number in range(1_500)]


@pytest.mark.parametrize(("patience", "notes"), [(0.02, 1), (60.0, 0)])
def test_slow_rows_are_named(
    patience: float,
    notes: int,
    tmp_path: Path,
    write_rows: Any,
    make_tokenizer: Any,
    template_of: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = RowEncoder.encode

    def slow(self: RowEncoder, rows: Any, place: Any) -> Any:
        # the second chunk is the one that explodes
        time.sleep(0.5 if len(rows) < 1_000 else 0)
        return whole(self, rows, place)

    monkeypatch.setattr(source, "PATIENCE_SECONDS", patience)
    monkeypatch.setattr(RowEncoder, "encode", slow)
    write_rows(ROWS)
    config = DataConfig.model_validate({"train": "rows.jsonl", "validation": 0})
    found = prepare(
        config, tokenizer=make_tokenizer(template=template_of("chatml")), folder=tmp_path, seed=0, cache_dir=tmp_path
    )
    assert len(found.train) == len(ROWS)
    told = [line for line in capsys.readouterr().err.splitlines() if "rows.jsonl:1025 to" in line]
    assert len(told) == notes
    assert all(line.startswith("note: rows from") and "rows.jsonl:1500" in line for line in told)
