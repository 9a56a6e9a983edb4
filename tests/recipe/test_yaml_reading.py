"""YAML 1.2 as recipes read it: what each spelling means, and what is refused with its place."""

from __future__ import annotations

import math

import pytest

from peftcli.yaml import MAX_BYTES, Node, node_of, parse, parse_value, plain, scalar
from peftcli.yaml_writing import dump, flow


def read(text: str) -> object:
    parsed = parse(text.encode("utf-8"), "r.yaml")
    assert not parsed.faults, parsed.faults
    assert parsed.node is not None
    return plain(parsed.node)


SPELLINGS = [
    ("2e-5", 2e-5),
    ("1E3", 1000.0),
    ("1e+3", 1000.0),
    (".5", 0.5),
    ("5.", 5.0),
    ("-1.5", -1.5),
    ("+2", 2),
    ("0", 0),
    ("-0", 0),
    ("010", 10),
    ("1_000", "1_000"),
    ("0x10", 16),
    ("0o7", 7),
    ("1:30", "1:30"),
    ("no", "no"),
    ("yes", "yes"),
    ("on", "on"),
    ("off", "off"),
    ("y", "y"),
    ("true", True),
    ("True", True),
    ("FALSE", False),
    ("tRUE", "tRUE"),
    ("null", None),
    ("~", None),
    ("Null", None),
    ("", None),
    ("none", "none"),
    (".inf", math.inf),
    ("-.inf", -math.inf),
    ("inf", "inf"),
    ("nan", "nan"),
    ("2026-01-01", "2026-01-01"),
    ("=", "="),
    ("<<", "<<"),
    ("1e", "1e"),
    ("e5", "e5"),
    ("1.2.3", "1.2.3"),
    ("٣", "٣"),
]


@pytest.mark.parametrize(("text", "value"), SPELLINGS)
def test_plain_scalars_follow_the_core_schema(text: str, value: object) -> None:
    found = read(f"a: {text}")
    assert found == {"a": value}
    assert type(found["a"]) is type(value)  # type: ignore[index]
    assert scalar(text) == value


def test_not_a_number_is_a_float() -> None:
    assert math.isnan(float(scalar(".nan")))  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ['"2e-5"', "'no'", '"true"', "'null'", '"1"'])
def test_quoted_scalars_stay_text(text: str) -> None:
    assert read(f"a: {text}") == {"a": text[1:-1]}
    assert read(f"a: [{text}]") == {"a": [text[1:-1]]}


def test_block_scalars_stay_text() -> None:
    assert read("a: |\n  12\n  no\n") == {"a": "12\nno\n"}


def test_every_value_and_key_has_its_place() -> None:
    node = parse(b"a:\n  bb: 1\n  c: [x, {d: 2}]\n", "r.yaml").node
    assert node is not None
    c = node.child("a").child("c")  # type: ignore[union-attr]
    assert (c.where, c.key_where) == ("r.yaml:3:6", "r.yaml:3:3")  # type: ignore[union-attr]
    d = c.child(1).child("d")  # type: ignore[union-attr]
    assert (d.where, d.key_where) == ("r.yaml:3:14", "r.yaml:3:11")  # type: ignore[union-attr]


def test_places_count_characters_not_bytes() -> None:
    parsed = parse("ä: é\nb: [ö, ü, {x: 1, x: 2}]\n".encode(), "r.yaml")
    assert parsed.faults[0].where == "r.yaml:2:18"


@pytest.mark.parametrize("data", [b"\xef\xbb\xbfa: 1\nb: 2\n", b"a: 1\r\nb: 2\r\n", b"a: 1\rb: 2\r", b"a: 1\nb: 2"])
def test_byte_order_mark_and_line_ends_are_accepted(data: bytes) -> None:
    parsed = parse(data, "r.yaml")
    assert parsed.node is not None
    assert plain(parsed.node) == {"a": 1, "b": 2}


BOMB = "a: &a [x, x, x, x]\n" + "".join(
    f"{c}: &{c} [*{p}, *{p}, *{p}, *{p}]\n" for p, c in zip("abcdefghi", "bcdefghij", strict=True)
)
REFUSED = [
    ("duplicate", b"a: 1\nb: 2\na: 3\n", "r.yaml:3:1", "first at line 1:1"),
    ("duplicate inside", b"s:\n  k: 1\n  k: 1\n", "r.yaml:3:3", "first at line 2:3"),
    ("tab", b"a:\n\tb: 1\n", "r.yaml:2:1", "tab"),
    ("tab after spaces", b"a:\n  b:\n  \tc: 1\n", "r.yaml:3:3", "tab"),
    ("alias", b"a: 1\nb: *a\n", "r.yaml:2:4", ""),
    ("anchor", b"a: &x 1\n", "r.yaml:1:4", "anchors"),
    ("bomb", BOMB.encode(), "r.yaml:1:4", "anchors"),
    ("tag", b"a: !!python/object/apply:os.system ['id']\n", "r.yaml:1:4", "tags"),
    ("local tag", b"a: !include /etc/passwd\n", "r.yaml:1:4", "tags"),
    ("deep", b"a: " + b"[" * 60 + b"]" * 60, "r.yaml:1:53", "levels deep"),
    ("very deep", b"a: " + b"{" * 1500, "r.yaml:1:53", "levels deep"),
    ("many", b"a: [" + b"1," * 60_000 + b"]", "r.yaml:1:", "values"),
    ("large", b"a: " + b"x" * MAX_BYTES, "r.yaml", "larger than"),
    ("utf-16", "a: 1\n".encode("utf-16"), "r.yaml:1:1", "UTF-16"),
    ("utf-16 without mark", "a: 1\n".encode("utf-16-le"), "r.yaml:1:1", "UTF-16"),
    ("latin-1", b"a: 1\nb: caf\xe9\n", "r.yaml:2:7", "0xe9"),
    ("control", b"a: 1\nb: x\x01y\n", "r.yaml:2:5", "control"),
    ("unclosed quote", b"a: 'x\nb: 1\n", "r.yaml:", "not YAML"),
    ("unclosed list", b"a: [1, 2\nb: 3\n", "r.yaml:2:", "not YAML"),
    ("colon in text", b"a: b: c\n", "r.yaml:1:5", "`:`"),
    ("bad indentation", b"a:\n  b: 1\n c: 2\n", "r.yaml:3:2", "indentation"),
    ("at sign", b"a: @x\n", "r.yaml:1:4", "character"),
    ("two documents", b"a: 1\n---\na: 2\n", "r.yaml:2:1", "second document"),
    ("list as key", b"? [a]\n: 1\n", "r.yaml:1:3", "key"),
]


@pytest.mark.parametrize(("name", "data", "where", "message"), REFUSED, ids=[row[0] for row in REFUSED])
def test_refused_with_place_and_remedy(name: str, data: bytes, where: str, message: str) -> None:
    faults = parse(data, "r.yaml").faults
    assert faults, name
    assert str(faults[0].where).startswith(where)
    assert message in faults[0].message
    assert faults[0].fix
    assert len(faults[0].message) < 200


def test_several_duplicates_are_told_at_once() -> None:
    assert len(parse(b"a: 1\na: 2\nb: &x 3\nb: !!int 4\n", "r.yaml").faults) == 4


OVERRIDES = [
    ("16", 16),
    ("2e-5", 2e-5),
    ("no", "no"),
    ("null", None),
    ("[q_proj, v_proj]", ["q_proj", "v_proj"]),
    ("{type: sgd, momentum: 0.9}", {"type": "sgd", "momentum": 0.9}),
    ('"16"', "16"),
    ("Answer: yes", "Answer: yes"),
    ("*.jsonl", "*.jsonl"),
    ("a #b", "a #b"),
    ("&x", "&x"),
    ("", None),
    ("a: [", "a: ["),
]


@pytest.mark.parametrize(("text", "value"), OVERRIDES)
def test_values_of_overrides(text: str, value: object) -> None:
    parsed = parse_value(text, "--set k")
    assert not parsed.faults
    assert parsed.node is not None
    assert plain(parsed.node) == value


def test_broken_override_names_the_option() -> None:
    assert parse_value("[1, 2", "--set k").faults[0].where == "--set k"


def test_dump_reads_back() -> None:
    document = {
        "texts": [
            "no",
            "2e-5",
            "010",
            "null",
            "",
            " x",
            "a: b",
            "# c",
            "x\ny",
            "é",
            "@a",
            "*a",
            "true",
            "1",
            "<",
            "- a",
        ],
        "numbers": [1, -3, 0.1, 1e-5, 1e22, 2.0, 0.0],
        "others": [None, True, False, [], {}, {"a": [{"b": None}]}],
    }
    assert read(dump(document)) == document


def test_python_values_become_nodes() -> None:
    from pathlib import Path

    node = node_of({"a": [1, (2.0, None)], "p": Path("x")}, "here")
    assert isinstance(node, Node)
    assert plain(node) == {"a": [1, [2.0, None]], "p": "x"}
    assert node_of({"a": object()}, "here") is None
    assert node_of(b"bytes", "here") is None


@pytest.mark.parametrize(
    "value",
    [
        *[True, False, None, 0.5, 1e-5, -3, "a", "no", "true", "null", "1", "2e-5", "", " x", "x ", "a: b", "a:", "-"],
        *["- a", "a b", "a, b", "a]", "#", "a #b", "é", '"', "it's", "builtin:chat", "./a b.jsonl", "~", "x\ny", "{}", "@a"],
    ],
)  # fmt: skip
def test_a_value_on_one_line_is_read_back(value: object) -> None:
    for whole in ([value], {"a": value}, {"a": [value, {"b": value}]}):
        assert "\n" not in flow(whole)
        parsed = parse_value(flow(whole), "here")
        assert parsed.node is not None, (flow(whole), parsed.faults)
        assert plain(parsed.node) == whole


def test_words_are_those_of_yaml() -> None:
    assert flow({"x": [True, None, "a"], "r": 4}) == "{x: [true, null, a], r: 4}"
