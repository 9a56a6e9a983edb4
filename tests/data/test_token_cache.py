"""The token cache: what makes a new key and what does not, damage, and two builders at once."""

from __future__ import annotations

import errno
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peftcli import files
from peftcli.data.cache import TokenCache, default_cache_dir
from peftcli.data.config import DataConfig
from peftcli.data.doctor.base import Tally
from peftcli.data.prepare import PreparedData, prepare
from peftcli.errors import DataError

ROWS = [{"prompt": f"what is {number}?", "completion": f" it is {number}"} for number in range(50)]


@pytest.fixture
def run(tmp_path: Path, write_rows: Any, make_tokenizer: Any, template_of: Any) -> Callable[..., PreparedData]:
    def prepared(tokenizer: Any = None, seed: int = 0, **keys: Any) -> PreparedData:
        config = DataConfig.model_validate({"train": "rows.jsonl", "validation": 0, **keys})
        tokenizer = tokenizer or make_tokenizer(template=template_of("chatml"))
        return prepare(config, tokenizer=tokenizer, folder=tmp_path, seed=seed, cache_dir=tmp_path / "cache")

    write_rows(ROWS)
    prepared()
    return prepared


def test_the_second_start_reads_the_cache_and_gives_the_same(run: Any, tmp_path: Path) -> None:
    again = run()
    assert (again.facts.cached, again.facts.sources) == (1, 1)
    fresh = prepare(
        DataConfig(train="rows.jsonl", validation=0), tokenizer=_tokenizer(run), folder=tmp_path, seed=0, cache_dir=None
    )
    assert again.facts.train == fresh.facts.train
    assert again.findings == fresh.findings
    assert [row.input_ids.tolist() for row in again.train] == [row.input_ids.tolist() for row in fresh.train]


def _tokenizer(run: Any) -> Any:
    make, template = (cell.cell_contents for cell in run.__closure__ if callable(cell.cell_contents))
    return make(template=template("chatml"))


@pytest.mark.parametrize(
    "keys",
    [
        {"max_length": 99},
        {"truncation": "drop"},
        {"validation": 0.2},
        {"checks": {"duplicates": "off"}},
        {"seed": 7},
    ],
    ids=str,
)
def test_keys_that_change_no_token_keep_the_entry(run: Any, keys: dict[str, Any]) -> None:
    assert run(**keys).facts.cached == 1


@pytest.mark.parametrize(
    "keys",
    [
        {"train_on": "all"},
        {"append_eos": False, "checks": {"stop-token": "off"}},
        {"format": "prompt-completion"},
        {"train": {"path": "rows.jsonl", "rows": 20}},
        {"columns": {"prompt": "completion", "completion": "prompt"}},
    ],
    ids=str,
)
def test_keys_that_change_tokens_make_a_new_entry(run: Any, keys: dict[str, Any]) -> None:
    assert run(**keys).facts.cached == 0
    assert run(**keys).facts.cached == 1


def test_a_changed_byte_a_template_or_a_tokenizer_makes_a_new_entry(
    run: Any, tmp_path: Path, make_tokenizer: Any, template_of: Any, write_rows: Any
) -> None:
    assert run(make_tokenizer(template=template_of("gemma"))).facts.cached == 0
    assert (
        run(make_tokenizer(template=template_of("chatml"), specials=["<|im_start|>", "<|im_end|>"])).facts.cached == 0
    )
    path = tmp_path / "rows.jsonl"
    path.write_bytes(path.read_bytes().replace(b"what is 7?", b"what is 8?"))
    assert run().facts.cached == 0


def test_the_same_bytes_under_another_name_are_found_under_that_name(run: Any, tmp_path: Path) -> None:
    (tmp_path / "copy.jsonl").write_bytes((tmp_path / "rows.jsonl").read_bytes())
    data = run(train="copy.jsonl")
    assert data.facts.cached == 1
    assert data.train[0].origin.file == "copy.jsonl"
    both = run(train="rows.jsonl", validation="copy.jsonl", checks={"leakage": "warn"})
    assert both.validation is not None
    assert (both.train[0].origin.file, both.validation[0].origin.file) == ("rows.jsonl", "copy.jsonl")
    assert [(each.check, each.file, each.count) for each in both.findings] == [("leakage", "copy.jsonl", 50)]
    (tmp_path / "copy.jsonl.gz").write_bytes(gzip.compress((tmp_path / "rows.jsonl").read_bytes()))
    assert run(train="copy.jsonl.gz").facts.cached == 0


@pytest.mark.parametrize("harm", ["flip", "cut", "lose", "meta"])
def test_a_damaged_entry_is_built_again(run: Any, tmp_path: Path, harm: str) -> None:
    (meta,) = (tmp_path / "cache").rglob("source.json")
    tokens = meta.parent / "tokens.bin"
    before = run().facts.train.stream_sha256
    body = bytearray(tokens.read_bytes())
    if harm == "flip":
        body[40] ^= 1
        tokens.write_bytes(body)
    elif harm == "cut":
        tokens.write_bytes(body[:-8])
    elif harm == "lose":
        tokens.unlink()
    else:
        meta.write_text(json.dumps({"shapes": {}}))
    data = run()
    assert data.facts.cached == 0
    assert data.facts.train.stream_sha256 == before
    assert run().facts.cached == 1


def test_rows_with_faults_are_not_kept(run: Any, write_rows: Any, tmp_path: Path) -> None:
    entries = TokenCache(tmp_path / "cache").summary().entries
    write_rows([*ROWS, {"prompt": "a", "completion": None}])
    with pytest.raises(DataError):
        run()
    assert TokenCache(tmp_path / "cache").summary().entries == entries


def test_clearing_leaves_what_is_not_the_caches(run: Any, tmp_path: Path) -> None:
    run()
    folder = tmp_path / "cache"
    mine = [
        folder / "thesis.txt",
        folder / "tokens" / "secret.key",
        folder / "tokens" / "ab" / "notes",
        folder / "reviews" / "a.json",
    ]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    TokenCache(folder).clear()
    assert [path.read_text() for path in mine] == ["mine"] * 4
    assert TokenCache(folder).summary().bytes == 0


def test_summary_and_clearing(run: Any, tmp_path: Path) -> None:
    cache = TokenCache(tmp_path / "cache")
    summary = cache.summary()
    assert summary.entries == 1
    assert summary.bytes > 1000
    assert cache.clear() == summary
    assert cache.summary().entries == 0
    assert run().facts.cached == 0


def test_a_changed_digit_in_a_kept_review_is_noticed(tmp_path: Path) -> None:
    """It would name other rows in the findings: it is reviewed anew."""
    cache = TokenCache(tmp_path)
    tallies = {("duplicates", "rows.jsonl"): Tally(2, [3, 17], "the same as another row")}
    cache.save_review("k", tallies)
    assert cache.load_review("k") == tallies
    path = tmp_path / "reviews" / "k.json"
    whole = path.read_text()
    for old, new in (("17", "18"), (": 2", ": 5"), ("rows.jsonl", "rows.jsonm")):
        assert old in whole
        path.write_text(whole.replace(old, new))
        assert cache.load_review("k") is None


def test_the_cache_folder_can_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PEFTCLI_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path
    monkeypatch.delenv("PEFTCLI_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "peftcli"


BUILDER = """
import sys, time
from pathlib import Path
from transformers import PreTrainedTokenizerFast
from peftcli.data.config import DataConfig
from peftcli.data.prepare import prepare
folder, start = Path(sys.argv[1]), Path(sys.argv[2])
tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), bos_token="<s>", eos_token="</s>")
(folder / f"ready-{sys.argv[3]}").touch()
while not start.exists():
    time.sleep(0.001)
config = DataConfig(train="rows.jsonl", validation=0)
data = prepare(config, tokenizer=tokenizer, folder=folder, seed=0, cache_dir=folder / "cache")
print(data.facts.train.stream_sha256)
"""


def test_two_processes_may_build_the_same_entry_at_once(tmp_path: Path, write_rows: Any, make_tokenizer: Any) -> None:
    import time

    write_rows(ROWS * 40)
    make_tokenizer().backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    start = tmp_path / "start"
    command = [sys.executable, "-c", BUILDER, str(tmp_path), str(start)]
    builders = [
        subprocess.Popen([*command, str(number)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for number in range(2)
    ]
    while not all((tmp_path / f"ready-{number}").exists() for number in range(2)):
        assert all(builder.poll() is None for builder in builders)
        time.sleep(0.01)
    start.touch()
    answers = [builder.communicate(timeout=120) for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0], answers
    assert len({out for out, _ in answers}) == 1
    assert TokenCache(tmp_path / "cache").summary().entries == 1
    assert not list((tmp_path / "cache").rglob(".tmp-*"))


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_a_cache_that_cannot_be_written_is_told_and_left_out(
    write_rows: Any, tmp_path: Path, chat_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    write_rows(ROWS)
    config = DataConfig(train="rows.jsonl", validation=0)
    usual = prepare(config, tokenizer=chat_tokenizer, folder=tmp_path, seed=0)

    def refuses(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.disk, "make_folder", refuses)
    data = prepare(config, tokenizer=chat_tokenizer, folder=tmp_path, seed=0, cache_dir=tmp_path / "kept")
    assert data.facts.train.stream_sha256 == usual.facts.train.stream_sha256
    (told,) = data.warnings
    assert str(tmp_path / "kept") in told
    assert "PEFTCLI_CACHE" in told
    assert usual.warnings == ()


def test_a_file_in_place_of_the_cache_is_no_reason_to_fail(
    write_rows: Any, tmp_path: Path, chat_tokenizer: Any
) -> None:
    write_rows(ROWS)
    (tmp_path / "kept").write_text("a file")
    config = DataConfig(train="rows.jsonl", validation=0)
    data = prepare(config, tokenizer=chat_tokenizer, folder=tmp_path, seed=0, cache_dir=tmp_path / "kept")
    assert "PEFTCLI_CACHE" in data.warnings[0]
    assert (tmp_path / "kept").read_text() == "a file"
