"""Chat templates and data files that somebody else made."""

# ruff: noqa: E501 - a table reads best with an entry a line

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable

from hostile_case import CHAT, ON_TEMPLATE, PYTHON_PAYLOAD, Case, Scene
from lying_columns import LYING, promising_arrow

COMMAND = "plan r.yaml"
REFUSED = frozenset({3, 4, 6})
ANY = frozenset({0, 3, 4, 6})


def template(source: str) -> Callable[[Scene], object]:
    def prepare(scene: Scene) -> None:
        scene.write("r.yaml", ON_TEMPLATE)
        scene.write("rows.jsonl", CHAT * 3)
        scene.write("t.jinja", source)

    return prepare


Content = bytes | str | Callable[[], bytes | str] | None


def data(name: str, content: Content, source: str | None = None) -> Callable[[Scene], object]:
    """`content`: of the file, or what makes it where it is large; None writes none."""

    def prepare(scene: Scene) -> None:
        if content is not None:
            scene.write(name, content() if callable(content) else content)
        recipe(scene, source or f"./{name}")

    return prepare


def recipe(scene: Scene, source: str) -> None:
    text = f"model: builtin:tiny\ndata: {{train: {source}}}\nmethod: lora\ntraining: {{max_steps: 1, batch_size: 1}}\n"
    scene.write("r.yaml", text)


def sparse(name: str, size: int) -> Callable[[Scene], object]:
    def prepare(scene: Scene) -> None:
        os.truncate(scene.write(name, b""), size)
        recipe(scene, f"./{name}")

    return prepare


def made(change: Callable[[Scene], str]) -> Callable[[Scene], object]:
    return lambda scene: recipe(scene, change(scene))


def pipe(scene: Scene) -> str:
    os.mkfifo(scene.folder / "rows.jsonl")
    return "./rows.jsonl"


def script_folder(scene: Scene) -> str:
    scene.write("set/set.py", PYTHON_PAYLOAD)
    scene.write("set/rows.jsonl", CHAT)
    return "./set"


def saved_elsewhere(scene: Scene) -> str:
    """A saved dataset whose files lie outside of its folder."""
    info = {"features": {"text": {"dtype": "string", "_type": "Value"}}}
    state = {
        "_data_files": [{"filename": "../../outside"}], "_fingerprint": "a", "_format_columns": None,
        "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False, "_split": None,
    }  # fmt: skip
    scene.write("saved/dataset_info.json", json.dumps(info))
    scene.write("saved/state.json", json.dumps(state))
    return "./saved"


def saved_with_pickle(scene: Scene) -> str:
    state = {"_data_files": [{"filename": "data.arrow"}], "_fingerprint": "a", "_format_type": "evil_module",
             "_format_columns": None, "_format_kwargs": {"a": "evil_module"}, "_output_all_columns": False,
             "_split": None}  # fmt: skip
    scene.write("saved/dataset_info.json", json.dumps({"features": {"a": {"_type": "evil_module.Evil"}}}))
    scene.write("saved/state.json", json.dumps(state))
    scene.write("saved/data.arrow", b"ARROW1")
    return "./saved"


def endless_link(scene: Scene) -> str:
    (scene.folder / "set").mkdir()
    scene.write("set/rows.jsonl", CHAT)
    (scene.folder / "set" / "again").symlink_to(scene.folder / "set")
    return "./set"


def link_outside(scene: Scene) -> str:
    (scene.folder / "rows.jsonl").symlink_to(scene.outside)
    return "./rows.jsonl"


def many_members() -> bytes:
    """10 GB in a few MB: a gzip file may hold many parts one after the other."""
    return gzip.compress(bytes(100 << 20), 9) * 100


def pointing(kind: str) -> Callable[[Scene], object]:
    """A file of kilobytes whose cells stand for 50 GB: one long text (or list) that every row points at."""

    def prepare(scene: Scene) -> None:
        import pyarrow
        import pyarrow.feather
        import pyarrow.parquet

        zeros = pyarrow.array([0] * 10_000, pyarrow.int32())
        cells = pyarrow.DictionaryArray.from_arrays(zeros, pyarrow.array(["x" * 5_000_000]))
        made = {
            "texts": cells,
            "nested": pyarrow.ListArray.from_arrays(pyarrow.array(range(10_001), pyarrow.int32()), cells),
            "values": pyarrow.ListArray.from_arrays(
                pyarrow.array(range(0, 80_000_001, 1_000_000), pyarrow.int32()),
                pyarrow.nulls(80_000_000, pyarrow.int8()).fill_null(0),
            ),
            "runs": pyarrow.RunEndEncodedArray.from_arrays([2_000_000_000], ["x"]),
            "views": pyarrow.ListViewArray.from_arrays(
                zeros, pyarrow.array([3_000] * 10_000, pyarrow.int32()), pyarrow.array(["x" * 1_000] * 3_000)
            ),
        }
        table = pyarrow.table({"text": made[kind]})
        path = scene.folder / f"rows.{'parquet' if kind in PARQUET else 'arrow'}"
        if kind in PARQUET:
            pyarrow.parquet.write_table(table, path, compression="zstd", row_group_size=1 if kind == "values" else None)
        else:
            with pyarrow.OSFile(str(path), "wb") as raw, pyarrow.ipc.new_file(raw, table.schema) as writer:
                writer.write_table(table)
        del table, made, cells
        pyarrow.default_memory_pool().release_unused()
        recipe(scene, f"./{path.name}")

    return prepare


PARQUET = ("texts", "nested", "values")


def case(name: str, prepare: Callable[[Scene], object], *says: str, codes: frozenset[int] = REFUSED) -> Case:
    return Case(name, "data", prepare, codes, says, COMMAND)


BENIGN = Case(
    "data",
    "data",
    template("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"),
    frozenset({0}),
    (),
    COMMAND,
)

TEMPLATES = [
    case(f"template: {name}", template(source), *says, codes=codes)
    for name, source, says, codes in [
        ("nested ranges", "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", ("computes for more than",), REFUSED),
        ("a long range", "{{ range(10**9)|list }}", (), REFUSED),
        ("a repeated text", "{{ 'x' * 2000000000 }}", ("refused",), REFUSED),
        ("a repeated list", "{{ ([0] * 2000000000)|length }}", (), REFUSED),
        ("a text that doubles", "{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}", (), REFUSED),
        ("a list that doubles", "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}", (), REFUSED),
        ("a power", "{{ 9 ** 9 ** 9 }}", (), REFUSED),
        ("a wide format", "{{ '%1000000000d' % 1 }}", (), REFUSED),
        ("a wide new format", "{{ '{:1000000000d}'.format(1) }}", (), REFUSED),
        ("a wide text", "{{ 'x'.ljust(1000000000) }}", (), REFUSED),
        ("a wide filter", "{{ 'x'|center(1000000000) }}", (), REFUSED),
        ("a deep indent", "{{ ('x\n' * 1000)|indent(1000000) }}", (), REFUSED),
        ("a deep indent that is set", "{% set a = ('x\n' * 1000)|indent(1000000) %}{% set b = ('x\n' * 1000)|indent(1000001) %}", (), REFUSED),
        ("constants that are compared", "{% if ('x' * 300000000)|upper|lower == ('y' * 300000000)|upper|lower %}a{% endif %}" * 9, (), REFUSED),
        ("many replacements", "{% set ns = namespace(x='x') %}{% for i in range(9) %}{% set ns.x = ns.x.replace('x', 'x' * 1000) %}{% endfor %}", (), REFUSED),
        ("many joins", "{{ range(100000)|join('x' * 100000) }}", (), REFUSED),
        ("a macro of itself", "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}", (), REFUSED),
        ("a loop of itself", "{% for a in [[[]]] recursive %}{{ loop([[a, a], [a, a]]) }}{% endfor %}", (), REFUSED),
        ("classes", "{{ ''.__class__.__mro__[1].__subclasses__() }}", (), REFUSED),
        ("attributes by filter", "{{ ''|attr('__class__') }}", (), REFUSED),
        ("globals of a function", "{{ raise_exception.__globals__['os'].system('touch CANARY') }}", (), REFUSED),
        ("format of attributes", "{{ '{0.__class__.__mro__}'.format('') }}", (), REFUSED),
        ("include", "{% include '/etc/passwd' %}", (), REFUSED),
        ("import", "{% import 'os' as os %}{{ os.system('touch CANARY') }}", (), REFUSED),
        ("extends", "{% extends '/etc/passwd' %}", (), REFUSED),
        ("escape codes", "{{ raise_exception('\x1b[31mred\x1b]8;;http://x\x07') }}", (), REFUSED),
        ("a refusal of 1 MB", "{{ raise_exception('x' * 1000000) }}", (), REFUSED),
        ("70 kB", "{# " + "x" * 70_000 + " #}", ("64 KiB",), REFUSED),
        ("deep", "{{ " + "(" * 500 + "1" + ")" * 500 + " }}", (), ANY),
        ("deep ifs", "{% if 1 %}" * 500 + "{% endif %}" * 500, (), REFUSED),
        ("changes the rows", "{% set _ = messages.append({'role': 'user', 'content': 'x'}) %}{{ messages[0].content }}", (), ANY),
        ("waits for ever", "{% for i in cycler(1, 2) %}{% endfor %}", (), ANY),
        ("a tree of strftime", "{{ strftime_now('%Y' * 100000) }}", (), ANY),
    ]
]  # fmt: skip

TURNS = (
    json.dumps({"messages": [{"role": ("user", "assistant")[n % 2], "content": f"x{n}"} for n in range(600)]}) + "\n"
)


def wide(count: int, twice: bool = False) -> str:
    names = ",".join(f"c{number // (1 + twice)}" for number in range(count))
    return f"{names}\n" + (",".join("x" * count) + "\n") * 3


DATASETS = [
    case("data: a conversation of 600 turns", data("rows.jsonl", TURNS), codes=frozenset({0, 3})),
    case("data: a table of 40,000 columns", data("rows.csv", wide(40_000)), "39,988 more"),
    case("data: a table of 40,000 columns twice", data("rows.csv", wide(80_000, twice=True)), "names a column twice"),
    case("data: 200,000 keys", data("rows.jsonl", lambda: json.dumps({f"k{n}": 1 for n in range(200_000)}) + "\n"), "199,988 more"),
    case("data: a text of 40 MB", data("rows.jsonl", lambda: json.dumps({"text": "x " * (20 << 20)}) + "\n"), "not taken as one text"),
    case("data: script", made(script_folder), "dataset script"),
    case("data: gz bomb", data("rows.jsonl.gz", many_members), "rows.jsonl.gz", "longer than 100 MiB"),
    case("data: a line of 101 MB", data("rows.jsonl", lambda: "x" * (101 << 20)), "longer than 100 MiB"),
    case("data: a table's line of 101 MB", data("rows.csv", lambda: "a,b\n" + "x" * (101 << 20)), "longer than 100 MiB"),
    case("data: a text file of holes", sparse("rows.txt", 3 << 30), "not text"),
    case("data: a list of 3 GB", sparse("rows.json", 3 << 30), "rows.json"),
    case("data: a table file of 3 GB", sparse("rows.parquet", 3 << 30), "rows.parquet"),
    case("data: an arrow file of 3 GB", sparse("rows.arrow", 3 << 30), "rows.arrow"),
    case("data: an arrow stream of lengths", data("rows.arrow", b"\xff\xff\xff\xff\xff\xff\xff\x7f" + bytes(64)), "rows.arrow"),
    *(case(f"data: columns of {kind}", pointing(kind), "expands to more than") for kind in (*PARQUET, "runs", "views")),
    *(case(f"data: parquet of {kind}", data("rows.parquet", make), "rows.parquet") for kind, make in LYING.items()),
    case("data: an arrow file that promises", data("rows.arrow", lambda: promising_arrow(stream=False)), "at once: refused"),
    case("data: an arrow stream that promises", data("rows.arrow", lambda: promising_arrow(stream=True)), "at once: refused"),
    case("data: a pipe", made(pipe), "not a regular file"),
    case("data: a device", data("x", None, "/dev/zero"), "kind of data file"),
    case("data: a link to a pipe", made(link_outside), "not a regular file"),
    case("data: a folder inside itself", made(endless_link), codes=ANY),
    case("data: deep lists", data("rows.jsonl", "[" * 200_000 + "\n"), "too deeply nested"),
    case("data: many digits", data("rows.jsonl", '{"text": ' + "9" * 200_000 + "}\n"), "rows.jsonl:1"),
    case("data: a saved set elsewhere", made(saved_elsewhere), "saved"),
    case("data: a saved set of classes", made(saved_with_pickle), "saved"),
    case("data: escape codes", data("rows.jsonl", '{"\x1b[31m": "\u202e"\n'), "rows.jsonl:1"),
    case("data: a pickle", data("rows.pkl", b"\x80\x04."), "kind of data file"),
    case("data: a zip", data("rows.zip", b"PK\x03\x04"), "archives"),
    case("data: pattern of patterns", data("x", None, '"' + "**/" * 200 + '*.jsonl"'), "no file matches"),
]  # fmt: skip
