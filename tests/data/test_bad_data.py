"""The bad-input catalogue of data rows: each entry gives its message, its place and the contract's exit code."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from peftcli.data.config import DataConfig
from peftcli.data.prepare import prepare
from peftcli.errors import DataError, HubError, ModelError, PeftcliError

GOOD = '{"text": "the cat sat on the mat"}\n'
CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}


def _with(turn: int, **changes: Any) -> str:
    messages = [dict(message) for message in CHAT["messages"]]
    messages[turn] = {key: value for key, value in {**messages[turn], **changes}.items() if value != "DROP"}
    return json.dumps({"messages": messages}) + "\n"


@dataclass
class Bad:
    """`files`: name -> content; `says`: parts that the message must hold."""

    number: str
    files: dict[str, bytes | str]
    says: tuple[str, ...]
    error: type[PeftcliError] = DataError
    keys: dict[str, Any] = field(default_factory=dict)


def _truncated_parquet() -> bytes:
    return b"PAR1" + b"\x00" * 40


CATALOGUE = [
    Bad("43 path missing", {"other.jsonl": GOOD}, ("no such file", "other.jsonl"), keys={"train": "missing.jsonl"}),
    Bad("44 empty file", {"rows.jsonl": ""}, ("no rows", "rows.jsonl")),
    Bad(
        "45 all rows gone",
        {"rows.jsonl": GOOD * 3},
        ("longer than max_length", "3 of 3"),
        keys={
            "truncation": "auto",
            "max_length": 2,
            "format": "prompt-completion",
            "columns": {"prompt": "text", "completion": "text"},
        },
    ),
    Bad(
        "45 all rows dropped",
        {"rows.jsonl": GOOD * 3},
        ("no row of train is left of 3", "3 longer than max_length"),
        keys={
            "truncation": "drop",
            "max_length": 2,
            "format": "prompt-completion",
            "columns": {"prompt": "text", "completion": "text"},
        },
    ),
    Bad(
        "47 broken JSON",
        {"rows.jsonl": GOOD * 2 + '{"text": "cut\n' + GOOD},
        ("not valid JSON", "rows.jsonl:3:", "cut"),
    ),
    Bad(
        "48 not UTF-8",
        {"rows.jsonl": GOOD.encode() + b'{"text": "caf\xe9"}\n'},
        ("0xe9", "offset 13", "rows.jsonl:2", "Latin-1"),
    ),
    Bad("48 UTF-16", {"rows.jsonl": GOOD.encode("utf-16")}, ("UTF-16", "iconv")),
    Bad(
        "50 column missing",
        {"rows.jsonl": '{"promt": "a", "completion": "b"}\n'},
        ("'prompt'", "did you mean 'promt'", "columns present: promt, completion"),
        keys={"format": "prompt-completion"},
    ),
    Bad(
        "50 no format",
        {"rows.jsonl": '{"question": "a", "answer": "b"}\n'},
        ("no format", "question, answer", "columns: {prompt: question"),
    ),
    Bad("51 null text", {"rows.jsonl": GOOD + '{"text": null}\n'}, ("'text' is null", "rows.jsonl:2")),
    Bad("52 number for text", {"rows.jsonl": GOOD + '{"text": 12}\n'}, ("'text' is a number", "rows.jsonl:2")),
    Bad(
        "53 mixed files",
        {"a.jsonl": GOOD, "b.jsonl": '{"prompt": "a", "completion": "b"}\n'},
        ("'text'", "b.jsonl:1"),
        keys={"train": "*.jsonl"},
    ),
    Bad("53 mixed rows", {"rows.jsonl": GOOD + '{"body": "a"}\n'}, ("'text' is missing", "rows.jsonl:2", "body")),
    Bad("54 no role", {"rows.jsonl": _with(0, role="DROP")}, ("message 1 has no role", "rows.jsonl:1")),
    Bad("54 no content", {"rows.jsonl": _with(1, content="DROP")}, ("message 2 (assistant) has no content",)),
    Bad("54 unknown role", {"rows.jsonl": _with(0, role="usr")}, ("unknown role 'usr'", "did you mean 'user'")),
    Bad("54 empty content", {"rows.jsonl": _with(1, content=" ")}, ("message 2 (assistant) has empty content",)),
    Bad(
        "54 assistant first",
        {"rows.jsonl": json.dumps({"messages": CHAT["messages"][::-1]}) + "\n"},
        ("role-order", "message 1 (assistant) follows nothing", "rows.jsonl:1"),
    ),
    Bad(
        "54 nobody answers",
        {"rows.jsonl": json.dumps({"messages": CHAT["messages"][:1]}) + "\n"},
        ("no assistant message",),
    ),
    Bad(
        "55 nothing trained",
        {"rows.jsonl": json.dumps(CHAT) + "\n" + _with(1, train=False)},
        ("no-trained-tokens", "no trained token", "rows.jsonl:2"),
    ),
    Bad(
        "56 too long",
        {"rows.jsonl": json.dumps(CHAT) + "\n"},
        ("longer than max_length (5)", "rows.jsonl:1", "data.max_length:"),
        keys={"max_length": 5, "truncation": "error"},
    ),
    Bad("58 NaN", {"rows.jsonl": GOOD + '{"text": "a", "score": NaN}\n'}, ("NaN", "rows.jsonl:2")),
    Bad(
        "62 ragged CSV",
        {"rows.csv": "text,other\na,b\nc\nd,e,f\n"},
        ("1 cells, the header 2", "rows.csv:3", "rows.csv:4"),
        keys={"train": "rows.csv"},
    ),
    Bad(
        "63 truncated parquet",
        {"rows.parquet": _truncated_parquet()},
        ("not a whole Parquet file", "rows.parquet"),
        keys={"train": "rows.parquet"},
    ),
    Bad(
        "64 gz bomb",
        {"rows.jsonl.gz": gzip.compress(b" " * (40 << 20))},
        ("expands to more than", "rows.jsonl.gz"),
        keys={"train": "rows.jsonl.gz"},
    ),
    Bad(
        "64 damaged gz",
        {"rows.jsonl.gz": gzip.compress(GOOD.encode() * 99)[:-12]},
        ("damaged", "rows.jsonl.gz"),
        keys={"train": "rows.jsonl.gz"},
    ),
    Bad(
        "67 dataset script",
        {"set/rows.jsonl": GOOD, "set/set.py": "raise SystemExit\n"},
        ("dataset script", "set.py", "never run"),
        keys={"train": "./set"},
    ),
    Bad(
        "68 hub, offline",
        {"rows.jsonl": GOOD},
        ("cannot be reached", "nobody/nothing-here"),
        HubError,
        {"train": "nobody/nothing-here"},
    ),
    Bad(
        "76 no template",
        {"rows.jsonl": json.dumps(CHAT) + "\n"},
        ("no chat template", "model.chat_template", "instruct", "prompt and completion"),
        ModelError,
        {"template": None},
    ),
    Bad(
        "77 template fails",
        {"rows.jsonl": json.dumps(CHAT) + "\n"},
        ("chat template, line 2", "rows.jsonl:1"),
        ModelError,
        {"template": "\n{{ messages[0].content + 1 }}"},
    ),
    Bad("archive", {"rows.zip": b"PK"}, ("archives are not read", "rows.zip"), keys={"train": "rows.zip"}),
    Bad("unknown kind", {"rows.docx": b"PK"}, ("unknown kind", ".jsonl"), keys={"train": "rows.docx"}),
    Bad("not an object", {"rows.jsonl": GOOD + "[1]\n"}, ("must be a JSON object, not a list", "rows.jsonl:2")),
    Bad("half a surrogate", {"rows.jsonl": GOOD + '{"text": "\\ud800"}\n'}, ("surrogate", "rows.jsonl:2")),
    Bad("deep nesting", {"rows.jsonl": GOOD + "[" * 100_000 + "\n"}, ("too deeply nested", "rows.jsonl:2")),
    Bad(
        "broken JSON list",
        {"rows.json": '[{"text": "a"},\n {"text": }]'},
        ("not valid JSON", "rows.json:2:11"),
        keys={"train": "rows.json"},
    ),
    Bad("control characters in an excerpt", {"rows.jsonl": '{"text": \x1b[31m}\n'}, ("\\x1b[31m",)),
    Bad(
        "empty completion",
        {"rows.jsonl": '{"prompt": "a", "completion": ""}\n'},
        ("'completion' is empty", "rows.jsonl:1"),
    ),
    Bad("validation takes all", {"rows.jsonl": GOOD}, ("nothing would be left",), keys={"validation": 1}),
    Bad(
        "unknown builtin",
        {"rows.jsonl": GOOD},
        ("no built-in data 'chta'", "did you mean 'chat'"),
        keys={"train": "builtin:chta"},
    ),
]


@pytest.mark.parametrize("bad", CATALOGUE, ids=lambda bad: bad.number)
def test_bad_data_is_told_with_its_place(tmp_path: Path, bad: Bad, make_tokenizer: Any, template_of: Any) -> None:
    for name, content in bad.files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    keys = {"train": "rows.jsonl", **bad.keys}
    tokenizer = make_tokenizer(template=keys.pop("template", template_of("chatml")))
    with pytest.raises(bad.error) as caught:
        prepare(DataConfig.model_validate(keys), tokenizer=tokenizer, folder=tmp_path, seed=0)
    told = caught.value.render()
    assert [part for part in bad.says if part not in told] == [], told
    assert caught.value.exit_code == {DataError: 3, ModelError: 4, HubError: 11}[bad.error]
    assert len(told.splitlines()) <= 20
    assert all(char.isprintable() or char == "\n" for char in told)


def test_the_first_five_faults_are_told_and_all_are_counted(prepared: Callable[..., Any]) -> None:
    with pytest.raises(DataError) as caught:
        prepared([{"text": None if number % 2 else "a"} for number in range(40)])
    (fault,) = caught.value.faults
    assert caught.value.message.startswith("20 rows cannot be used; the first 5: ")
    assert [place.rpartition(":")[2] for place in str(fault.where).split(", ")] == ["2", "4", "6", "8", "10"]


def test_a_line_longer_than_the_bound_is_refused(monkeypatch: pytest.MonkeyPatch, prepared: Callable[..., Any]) -> None:
    monkeypatch.setattr("peftcli.data.readers.lines.MAX_LINE_BYTES", 1000)
    with pytest.raises(DataError, match=r"rows\.jsonl:1"):
        prepared([{"text": "x" * 2000}])


def test_a_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, prepared: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from peftcli.data.encode import source

    parsed = source.SourceReader.parse

    def meddle(*args: Any) -> Any:
        with (tmp_path / "rows.jsonl").open("a") as stream:
            stream.write(GOOD)
        return parsed(*args)

    monkeypatch.setattr(source.SourceReader, "parse", meddle)
    with pytest.raises(DataError, match="changed while it was read"):
        prepared([{"text": "a"}])


def test_a_broken_line_in_a_large_file_is_found_quickly(tmp_path: Path, make_tokenizer: Any) -> None:
    import time

    lines = [GOOD] * 100_000
    lines[77_777] = '{"text": "broken\n'
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    began = time.process_time()
    with pytest.raises(DataError, match=r"rows\.jsonl:77778"):
        prepare(DataConfig(train="rows.jsonl", validation=0), tokenizer=make_tokenizer(), folder=tmp_path, seed=0)
    # 5 s of its own computing is the promise; a machine that has other work counts some more
    assert time.process_time() - began < 15


def test_a_pipe_is_refused_at_once(tmp_path: Path, make_tokenizer: Any) -> None:
    import os

    os.mkfifo(tmp_path / "rows.jsonl")
    with pytest.raises(DataError, match="not a regular file"):
        prepare(DataConfig(train="rows.jsonl", validation=0), tokenizer=make_tokenizer(), folder=tmp_path, seed=0)


@pytest.mark.parametrize(
    ("raised", "says"),
    [
        ("Dataset 'a/b' doesn't exist on the Hub or cannot be accessed.", "not on the Hub, or is private"),
        ("Dataset 'a/b' is a gated dataset on the Hub.", "is gated"),
        ("Revision 'v9' doesn't exist for dataset 'a/b' on the Hub.", "no revision 'v9'"),
        (ConnectionError("no route"), "cannot be reached"),
    ],
)
def test_hub_failures_are_told_apart(
    tmp_path: Path, make_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, raised: Any, says: str
) -> None:
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    def fail(*args: Any, **kwargs: Any) -> None:
        raise raised if isinstance(raised, Exception) else DatasetNotFoundError(raised)

    monkeypatch.setattr(datasets, "load_dataset", fail)
    config = DataConfig.model_validate({"train": {"path": "a/b", "revision": "v9"}})
    with pytest.raises(HubError, match=says):
        prepare(config, tokenizer=make_tokenizer(), folder=tmp_path, seed=0)


def test_a_dataset_that_needs_a_script_is_a_data_error(
    tmp_path: Path, make_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("Dataset scripts are no longer supported, but found b.py")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match="no longer supported"):
        prepare(DataConfig(train="a/b", validation=0), tokenizer=make_tokenizer(), folder=tmp_path, seed=0)
