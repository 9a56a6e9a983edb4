"""Patterns of files are matched as `re` matches them, and never run away."""

from __future__ import annotations

import contextlib
import random
import re
import time

import pytest

from peftcli.adapters.patterns import compile_pattern
from peftcli.errors import AdapterError

NAMES = ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj", "mlp.experts.3.up", "input_layernorm", "mlp")
PATHS = [f"model.layers.{layer}.{name}" for layer in range(12) for name in NAMES]
PATHS += ["lm_head", "model.embed_tokens", "", "vision.blocks.3.q_proj", "q_proj"]

USUAL = [
    r".*\.(q|v)_proj",
    r"model\.layers\.(1|2|11)\..*_proj$",
    r"^(?!.*(lm_head|vision)).*(q_proj|v_proj)",
    r"(?:.*?(?:vision|layers).*?(?:self_attn|mlp).*?(?:q_proj|k_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:mlp)\.(?:down_proj))",
    r".*[^0-9]\.1\b.*",
    r"\w+(\.\w+)*_proj",
    r".*(?<=attn)\.q_proj",
    r".*(?<!mlp)\.\w+_proj",
    r"(.*\.)?(q_proj)$",
    r".{3,20}",
    r"(a|b|lm)_?head?",
    r".*?\Bproj",
    r"[a-z_.]+\d[a-z_.]+",
    r"",
    r"model(\..+){2,3}",
    r"(?i).*\.(Q|V)_PROJ",
    r"(?i:MODEL)\.layers\..*",
    r"(?:[a-z_]++\.|\d++\.)*+[a-z_]+",
    r"(?>.*\.)q_proj",
    r"(?>model|model\.layers)\..*",
    r"(?s).*proj",
    r"""(?x) .* \. (q|k) _proj  # attention""",
]
ATOMS = [
    "a",
    "b",
    ".",
    "[ab]",
    "[^a]",
    r"\d",
    r"\w",
    "(a|b)",
    "(ab|a)",
    "(?:a?b)",
    "^",
    "$",
    r"\b",
    "(?=a)",
    "(?!b)",
    "(?<=a)",
    "(?<!b)",
    "A",
    "(?i:A)",
    "(?>a|ab)",
    "(?>(?:a|ab)(?:b|))",
]
REPEATS = ["", "", "", "*", "+", "?", "{1,2}", "{2}", "*?", "*+", "++", "?+", "{1,2}+"]
ENDLESS = [
    "(([a-z_]+)+[.0-9]*)+X",
    "(.|..|...)*X",
    ".*" * 30 + "X",
    ".?" * 60 + "." * 60,
    "((.{0,15}){0,15}){0,15}X",
    "(((((.*)*)*)*)*)*X",
    "(a{0,1000}){0,1000}b",
    "(?=.*.*.*X)" * 20,
    "(a|b)" * 200,
    "a{4000000000}",
    "(|a){4000000000}b",
    "(?>(?:a|b|[a-z.])*)" * 20 + "X",
    "(?:(?:[a-z_.]|[a-z])*+[0-9]?)*+X",
    "(?>(?:.|..|...)*X|.)*",
]  # fmt: skip


@pytest.mark.parametrize("pattern", USUAL)
def test_usual_patterns(pattern: str) -> None:
    ours, theirs = compile_pattern(pattern, what="x"), re.compile(pattern)
    for path in PATHS:
        assert ours.fullmatch(path) == bool(theirs.fullmatch(path)), path
        assert ours.match(path) == bool(theirs.match(path)), path


def test_three_thousand_random_patterns() -> None:
    generator, compared = random.Random(7), 0
    for _ in range(3000):
        pattern = "".join(generator.choice(ATOMS) + generator.choice(REPEATS) for _ in range(generator.randint(1, 5)))
        if generator.random() < 0.3:
            pattern = f"({pattern})" + generator.choice(["*", "+", "?", "{0,2}", "*+"])
        if generator.random() < 0.2:
            pattern = "(?i)" + pattern
        try:
            theirs = re.compile(pattern)
        except re.error:
            continue
        ours = compile_pattern(pattern, what="x")
        for _ in range(3):
            text = "".join(generator.choice("abAB1.") for _ in range(generator.randint(0, 7)))
            assert ours.fullmatch(text) == bool(theirs.fullmatch(text)), (pattern, text)
            compared += 1
    assert compared > 5000


@pytest.mark.parametrize("pattern", ENDLESS)
def test_nothing_runs_away(pattern: str) -> None:
    started = time.process_time()
    compiled = compile_pattern(pattern, what="x")
    # what atomic groups may cost is bounded, and beyond it an error
    with contextlib.suppress(AdapterError):
        for path in PATHS * 20:
            compiled.fullmatch(path)
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    "pattern",
    [r"(a)\1", "(?P<x>a)(?P=x)", "(a)?(?(1)b|c)", "(", "[", "a" * 1001, "(" * 900 + ")" * 900],
)
def test_what_is_not_read(pattern: str) -> None:
    with pytest.raises(AdapterError, match="field") as caught:
        compile_pattern(pattern, what="field")
    assert "list of names" in caught.value.render()
