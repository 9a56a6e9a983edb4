"""Data files. The recipe names `rows.jsonl` beside it."""

# ruff: noqa: E501 - a table reads best with an entry a line

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from entry import CHAT, ON_ROWS, ROWS, Entry, Place

from peftcli.data import sources
from peftcli.data.readers import base as readers

PLAN = "plan r.yaml"
LOOK = "data r.yaml"


def on(source: str, further: str = "") -> str:
    return f"model: builtin:tiny\ndata: {{train: {source}{further}}}\nmethod: lora\ntraining: {{batch_size: 2}}\n"


def turns(*messages: Any) -> str:
    return json.dumps({"messages": list(messages)}) + "\n"


USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}


def rows(*texts: str) -> dict[str, str | bytes]:
    return {"rows.jsonl": "".join(texts)}


def bad(number: str, says: tuple[str, ...], files: dict[str, str | bytes], recipe: str = ON_ROWS, **rest: Any) -> Entry:
    return Entry(number, 3, says, recipe=recipe, files=files, command=rest.pop("command", PLAN), **rest)


def good(number: str, says: tuple[str, ...], files: dict[str, str | bytes], recipe: str = ON_ROWS) -> Entry:
    return Entry(number, 0, says, recipe=recipe, files=files, command=LOOK)


def pipe(place: Place) -> None:
    import os

    os.mkfifo(place.folder / "rows.jsonl")


def unreadable(place: Place) -> None:
    place.write("rows.jsonl", ROWS).chmod(0)
    place.folder.chmod(0o755)


def changing(place: Place) -> None:
    """Another program appends to the file while it is read."""
    read_file = sources.read_file

    def reads(path: Path, *rest: Any) -> Any:
        yield from read_file(path, *rest)
        with path.open("a", encoding="utf-8") as stream:
            stream.write(ROWS)

    place.patch.setattr(sources, "read_file", reads)


def short_lines(place: Place) -> None:
    """100 MiB are tried in the tests of hostile files."""
    from peftcli.data.readers import lines

    assert readers.MAX_LINE_BYTES == 100 << 20
    place.patch.setattr(lines, "MAX_LINE_BYTES", 1 << 20)


def hub_answers(name: str) -> Any:
    def prepare(place: Place) -> None:
        import datasets
        from datasets.exceptions import DatasetNotFoundError

        texts = {
            "gone": "Dataset 'nobody/nothing' doesn't exist on the Hub or cannot be accessed.",
            "gated": "Dataset 'nobody/nothing' is a gated dataset on the Hub.",
        }

        def refuse(*args: Any, **kwargs: Any) -> Any:
            raise DatasetNotFoundError(texts[name])

        place.patch.setattr(datasets, "load_dataset", refuse)

    return prepare


HUB = "{path: nobody/nothing}"

DATA = [
    bad("43 missing", ("no such file", "rows.jsonl", "row.jsonl"), {"row.jsonl": ROWS}),
    bad("43 no folder", ("no such file", "there is no folder"), {}, on("./data/rows.jsonl")),
    bad("43 pattern", ("no file matches", "*.jsonl"), {}, on('"*.jsonl"')),
    bad("43 a pipe", ("not a regular file", "rows.jsonl"), {}, prepare=pipe),
    bad("43 unreadable", ("ermission", "rows.jsonl"), {}, prepare=unreadable, unprivileged=True),
    bad("44 empty", ("no rows", "rows.jsonl"), rows("")),
    bad("44 blank lines", ("no rows", "rows.jsonl"), rows("\n\n  \n")),
    bad("45 all dropped", ("no row of train is left of 2", "2 longer than max_length"), rows(ROWS * 2),
        on("./rows.jsonl", ", max_length: 3, truncation: drop")),
    bad("45 all too long", ("longer than max_length", "rows.jsonl:1", "data.max_length"), rows(ROWS * 2),
        on("./rows.jsonl", ", max_length: 3")),
    good("46 fewer rows than a batch", ("1 rows",), rows(ROWS)),
    bad("47 broken JSON", ("not valid JSON", "rows.jsonl:2:", '{"prompt": "a"', "correct or remove"), rows(ROWS, '{"prompt": "a", \n')),
    bad("47 several", ("25 rows cannot be used; the first 5", "rows.jsonl:1:", "rows.jsonl:5:"), rows("{\n" * 25), lines=20),
    bad("47 not an object", ("must be a JSON object, not a list", "rows.jsonl:2"), rows(ROWS, "[1]\n")),
    bad("47 broken list", ("not valid JSON", "rows.json:2:"), {"rows.json": '[{"text": "a"},\n {"text": }]'}, on("./rows.json")),
    bad("48 Latin-1", ("byte 0xe9", "rows.jsonl:2", "Latin-1", "iconv"), {"rows.jsonl": ROWS.encode() + b'{"prompt": "caf\xe9"}\n'}),
    bad("48 UTF-16", ("UTF-16", "rows.jsonl:1", "iconv"), {"rows.jsonl": ROWS.encode("utf-16")}),
    good("49 byte order mark", ("1 rows",), {"rows.jsonl": b"\xef\xbb\xbf" + ROWS.encode()}),
    good("49 CRLF", ("2 rows",), rows(ROWS.replace("\n", "\r\n") * 2)),
    bad("50 column missing", ("'prompt'", "columns present: promt, completion", "did you mean 'promt'"),
        rows('{"promt": "a", "completion": "b"}\n'), on("./rows.jsonl", ", format: prompt-completion")),
    bad("50 no format", ("no format", "question, answer", "columns: {prompt: question"), rows('{"question": "a", "answer": "b"}\n')),
    bad("51 null", ("'completion' is null", "rows.jsonl:2"), rows(ROWS, '{"prompt": "a", "completion": null}\n')),
    bad("52 number", ("'completion' is a number", "rows.jsonl:2"), rows(ROWS, '{"prompt": "a", "completion": 7}\n')),
    bad("52 list", ("'prompt' is a list", "rows.jsonl:2"), rows(ROWS, '{"prompt": ["a"], "completion": "b"}\n')),
    bad("53 mixed files", ("b.jsonl:1", "'prompt'"), {"a.jsonl": ROWS, "b.jsonl": '{"text": "a"}\n'}, on('"./*.jsonl"')),
    bad("53 mixed rows", ("'prompt' is missing", "rows.jsonl:2"), rows(ROWS, '{"text": "a"}\n')),
    bad("54 no role", ("message 1 has no role", "rows.jsonl:1"), rows(turns({"content": "Hi"}, ANSWER))),
    bad("54 no content", ("message 2 (assistant) has no content", "rows.jsonl:1"), rows(turns(USER, {"role": "assistant"}))),
    bad("54 unknown role", ("unknown role 'usr'", "did you mean 'user'", "roles: "), rows(turns({"role": "usr", "content": "Hi"}, ANSWER))),
    bad("54 answer first", ("follows nothing", "rows.jsonl:1"), rows(turns(ANSWER, USER)), command="train r.yaml"),
    bad("54 empty content", ("message 2 (assistant) has empty content",), rows(turns(USER, {"role": "assistant", "content": ""}))),
    bad("54 no answer", ("no assistant message", "rows.jsonl:1"), rows(turns(USER))),
    bad("54 not a list", ("'messages' is text but not JSON", "rows.jsonl:1"), rows('{"messages": "Hi"}\n'), on("./rows.jsonl", ", format: messages")),
    bad("55 nothing trained", ("no row of train is left of 1: 1 no trained token", "rows.jsonl"), rows(turns(USER, {**ANSWER, "train": False})), command="train r.yaml"),
    bad("56 too long", ("longer than max_length (3)", "rows.jsonl:1", "data.max_length"), rows(ROWS), on("./rows.jsonl", ", max_length: 3, truncation: error")),
    good("56 cut", ("truncat",), rows(ROWS.replace("Hi there.", "word " * 40)), on("./rows.jsonl", ", max_length: 12, truncation: right")),
    bad("57 empty completion", ("'completion' is empty", "rows.jsonl:1"), rows('{"prompt": "a", "completion": ""}\n')),
    bad("58 NaN", ("NaN is not a JSON number", "rows.jsonl:2", "null"), rows(ROWS, '{"prompt": "a", "completion": "b", "score": NaN}\n')),
    good("59 duplicates", ("duplicate",), rows(ROWS * 4)),
    good("59 overlap", ("trained on too",), {"rows.jsonl": ROWS, "other.jsonl": ROWS}, on("./rows.jsonl", ", validation: ./other.jsonl")),
    good("61 control characters", ("control",), rows('{"prompt": "a\\u0000\\u0007", "completion": "b"}\n')),
    bad("62 ragged CSV", ("1 cells, the header 2", "rows.csv:3", "quote cells"), {"rows.csv": "prompt,completion\na,b\nc\n"}, on("./rows.csv")),
    bad("62 header twice", ("names a column twice: a", "rows.csv:1"), {"rows.csv": "a,a\n1,2\n"}, on("./rows.csv")),
    bad("63 truncated parquet", ("not a whole Parquet file", "rows.parquet"), {"rows.parquet": b"PAR1" + bytes(40)}, on("./rows.parquet")),
    bad("63 arrow", ("not a whole Arrow file", "rows.arrow"), {"rows.arrow": b"ARROW1" + bytes(40)}, on("./rows.arrow")),
    bad("64 gz bomb", ("expands to more than", "rows.jsonl.gz", "decompress it yourself"), {"rows.jsonl.gz": gzip.compress(bytes(40 << 20))}, on("./rows.jsonl.gz")),
    bad("64 damaged gz", ("damaged", "rows.jsonl.gz", "fetch it again"), {"rows.jsonl.gz": gzip.compress(ROWS.encode() * 99)[:-9]}, on("./rows.jsonl.gz")),
    bad("64 an archive", ("archives are not read", "rows.zip", "unpack"), {"rows.zip": b"PK"}, on("./rows.zip")),
    bad("65 changing", ("changed while it was read", "rows.jsonl", "run again"), rows(ROWS.replace("Hello", "A text of its own")), prepare=changing),
    bad("66 a huge line", ("longer than", "rows.jsonl:1", "one row per line"), rows('{"prompt": "' + "a" * (1 << 20) + '"}\n'), prepare=short_lines),
    bad("67 dataset script", ("dataset script (set.py)", "never run", "folder/*.jsonl"), {"set/rows.jsonl": ROWS, "set/set.py": "raise SystemExit(3)\n"}, on("./set")),
    bad("67 no data files", ("no data files", "set", ".jsonl"), {"set/notes.md": "a"}, on("./set")),
    Entry("68 offline", 11, ("cannot be reached", "nobody/nothing", "connect once"), recipe=on(HUB), command=PLAN),
    Entry("68 not found", 11, ("is not on the Hub", "nobody/nothing", "check the name"), recipe=on(HUB), command=PLAN, prepare=hub_answers("gone")),
    Entry("68 gated", 11, ("is gated", "nobody/nothing", "HF_TOKEN"), recipe=on(HUB), command=PLAN, prepare=hub_answers("gated")),
    bad("unknown kind", ("unknown kind of data file", "rows.docx", ".jsonl"), {"rows.docx": b"PK"}, on("./rows.docx")),
    bad("unknown builtin", ("no built-in data 'suport'", "'support'"), {}, on("builtin:suport")),
    bad("unknown part", ("no part 'dev'", "train"), {}, on("builtin:support/dev")),
    bad("half a surrogate", ("surrogate", "rows.jsonl:2"), rows(ROWS, '{"prompt": "\\ud800", "completion": "b"}\n')),
    bad("deep", ("too deeply nested", "rows.jsonl:2"), rows(ROWS, "[" * 100_000 + "\n")),
    bad("a large number", ("rows.jsonl:2", "too many digits"), rows(ROWS, '{"prompt": "a", "completion": "b", "n": ' + "9" * 5000 + "}\n")),
    bad("escape codes", ("\\x1b[31m",), rows('{"prompt": \x1b[31m}\n')),
    bad("validation takes all", ("nothing would be left", "validation file"), rows(ROWS), on("./rows.jsonl", ", validation: 1")),
    bad("a revision of a file", ("has no `revision`", "leave `revision` out"), rows(ROWS), on("{path: ./rows.jsonl, revision: main}")),
    bad("a split of a file", ("has no splits", "leave `split` out"), rows(ROWS), on("{path: ./rows.jsonl, split: test}")),
    Entry("a part that no format has", 2, ("'promt' is not a part", "did you mean 'prompt'"), recipe=on("./rows.jsonl", ", columns: {promt: prompt}"), files=rows(ROWS), command=PLAN),
    good("a chat", ("1 rows",), rows(CHAT)),
    bad("input to generate", ("not valid JSON", "in.jsonl:2"), {"in.jsonl": '{"prompt": "a"}\n{"prompt"\n'}, command="generate run --input in.jsonl",
        prepare=lambda place: place.run()),
    bad("input missing", ("in.jsonl",), {}, command="generate run --input in.jsonl", prepare=lambda place: place.run()),
]  # fmt: skip
