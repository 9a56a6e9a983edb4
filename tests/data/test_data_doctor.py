"""The doctor: each check fires on its planted defect, none on a clean set, and severities decide what happens."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from peftcli.data.config import DataConfig
from peftcli.data.doctor.base import Finding, Review, all_checks, trained_on
from peftcli.data.doctor.checks.encoding_junk import junk_in
from peftcli.data.doctor.run import findings_lines
from peftcli.data.names import check_names
from peftcli.data.preview import read_parts
from peftcli.errors import DataError

TEMPLATES = Path(__file__).parent / "templates"
WORDS = "the cat sat on a mat while some dog ran to its park and then saw four birds near old stone walls".split()  # noqa: SIM905


def sentence(number: int, length: int = 14) -> str:
    """Sentences that differ from each other in most places."""
    return " ".join(
        WORDS[(number * 7 + place * (3 + number % 5)) % len(WORDS)] + str(number) for place in range(length)
    )


def _turns(*contents: str, roles: tuple[str, ...] = ("user", "assistant")) -> dict[str, Any]:
    return {"messages": [{"role": roles[at % len(roles)], "content": each} for at, each in enumerate(contents)]}


CLEAN_CHATS = [_turns(sentence(2 * number), sentence(2 * number + 1)) for number in range(40)]
CLEAN_PAIRS = [{"prompt": sentence(number), "completion": " " + sentence(number + 500)} for number in range(40)]
SPOILED = ("schÃ¶n", "â€œhelloâ€", "naÃ¯ve", "Ð¿Ñ€Ð¸Ð²ÐµÑ‚", "ä½ å¥½", "caf√©", "l’Ã©tÃ©", "âœ” yes", "ÃƒÂ©", "Â£5")
"""UTF-8 as Latin-1, Windows-1252 and Mac Roman show it, once and twice."""
CLEAN_TEXT = [{"text": sentence(number, 20)} for number in range(40)]


def _template(start: str, turn: str, prompt: str) -> str:
    return (
        f"{start}{{% for m in messages %}}{{{{ {turn} }}}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{{{{ {prompt} }}}}{{% endif %}}"
    )


NO_STOP = _template("", "m.role + ': ' + m.content + '\\n'", "'assistant: '")
TWO_BOS = _template("{{ bos_token + bos_token }}", "m.role + ':' + m.content + '<|end|>'", "'assistant:'")
OTHER_PROMPT = _template("", "'<|' + m.role + '|>' + m.content + '<|end|>'", "'<|im_start|>assistant\\n'")
NO_SYSTEM = (
    "{% for m in messages if m.role != 'system' %}{{ m.role + ':' + m.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)

NO_TOOLS = _template("", "'<|' + m.role + '|>' + m.content + '<|end|>'", "'<|assistant|>'")


def _thinking(thought: str) -> dict[str, Any]:
    user, answer = _turns("why", "because")["messages"]
    return {"messages": [user, {**answer, "reasoning": thought}]}


@dataclass
class Planted:
    """A defect in row `row` (1-based) of an otherwise clean set."""

    check: str
    rows: list[Any]
    row: int
    count: int = 1
    keys: dict[str, Any] = field(default_factory=dict)
    template: str | None = None


PLANTED = [
    Planted(
        "no-trained-tokens",
        [
            *CLEAN_CHATS,
            {"messages": [*CLEAN_CHATS[0]["messages"][:1], {"role": "assistant", "content": "x", "train": False}]},
        ],
        41,
    ),
    Planted(
        "truncated-answers",
        [*CLEAN_PAIRS, {"prompt": "a", "completion": " " + sentence(999, 90)}],
        41,
        keys={"truncation": "right", "max_length": 250},
    ),
    Planted("stop-token", CLEAN_CHATS[:3], 1, 3, template=NO_STOP),
    Planted("stop-token", CLEAN_PAIRS[:3], 1, 3, keys={"append_eos": False, "format": "segments"}),
    Planted("doubled-bos", CLEAN_CHATS[:3], 1, 3, template=TWO_BOS),
    Planted(
        "doubled-bos", [*CLEAN_PAIRS, {"prompt": "<s>hello", "completion": " there"}], 41, keys={"format": "segments"}
    ),
    Planted("missing-border", [*CLEAN_PAIRS, {"prompt": "a?", "completion": "b"}], 41, keys={"format": "segments"}),
    Planted("lost-tools", [*CLEAN_CHATS, {**CLEAN_CHATS[0], "tools": [{"name": "look"}]}], 41, template=NO_TOOLS),
    Planted("prompt-mismatch", CLEAN_CHATS[:3], 1, 3, template=OTHER_PROMPT),
    Planted("empty-thought", CLEAN_CHATS[:3], 1, 3, template=(TEMPLATES / "qwen3.jinja").read_text()),
    Planted("dropped-thoughts", [*CLEAN_CHATS, _thinking("so it is")], 41),
    Planted("no-thoughts", CLEAN_CHATS[:3], 1, 3, keys={"thoughts": "mask"}),
    Planted("no-thoughts", CLEAN_PAIRS[:3], 1, 3, keys={"thoughts": 0.5, "format": "segments"}),
    Planted(
        "lost-text",
        [*CLEAN_CHATS, _turns("be kind", "a", "b", roles=("system", "user", "assistant"))],
        41,
        template=NO_SYSTEM,
    ),
    Planted("doubled-end", [*CLEAN_TEXT, {"text": "it ends here</s>"}], 41),
    Planted("doubled-end", [*CLEAN_TEXT, {"text": "it ends here</s> \n\n"}], 41),
    Planted("doubled-end", [*CLEAN_CHATS, _turns("so?", "it ends here<|im_end|>")], 41),
    Planted("doubled-end", [*CLEAN_CHATS, _turns("so?", "it ends here<|im_end|>\n", "and?", "yes")], 41),
    Planted("role-order", [*CLEAN_CHATS, _turns("a", "b", "c", "d", roles=("user", "assistant", "assistant"))], 41),
    Planted("role-order", [*CLEAN_CHATS, _turns("a", "b", "c", roles=("user", "system", "assistant"))], 41),
    Planted("empty-rows", [*CLEAN_TEXT, {"text": " \n"}], 41),
    Planted("duplicates", [*CLEAN_CHATS, CLEAN_CHATS[3], CLEAN_CHATS[3]], 41, 2),
    Planted(
        "near-duplicates", [*CLEAN_PAIRS, {**CLEAN_PAIRS[7], "completion": CLEAN_PAIRS[7]["completion"] + "!"}], 41
    ),
    Planted("near-duplicates", [*CLEAN_TEXT, {"text": "So " + CLEAN_TEXT[9]["text"]}], 41),
    Planted("leakage", [CLEAN_PAIRS[5]], 1, keys={"validation": "rows.jsonl", "train": "clean.jsonl"}),
    Planted(
        "length-outliers",
        [*CLEAN_PAIRS, {"prompt": "a", "completion": sentence(999, 400)}],
        41,
        keys={"max_length": 20_000},
    ),
    Planted("encoding-junk", [*CLEAN_TEXT, {"text": "a cafÃ© by the sea"}], 41),
    *(
        Planted("encoding-junk", [*CLEAN_TEXT, {"text": f"it says {spoiled} there"}], 41)
        for spoiled in (
            "schÃ¶n",
            "â€œhelloâ€",
            "naÃ¯ve",
            "Ð¿Ñ€Ð¸Ð²ÐµÑ‚",
            "ä½ å¥½",
            "caf√©",
            "l’Ã©tÃ©",
            "âœ” yes",
            "ÃƒÂ©",
            "Â£5",
        )
    ),
    Planted("encoding-junk", [*CLEAN_TEXT, {"text": "lost \ufffd bytes"}], 41),
    Planted("encoding-junk", [*CLEAN_TEXT, {"text": "a nul \x00 here"}], 41),
    Planted("secrets", [*CLEAN_TEXT, {"text": "token hf_" + "aB3" * 12}], 41),
    Planted("secrets", [*CLEAN_CHATS, _turns("my key is AKIA" + "ABCD1234" * 2, "noted")], 41),
    Planted("special-tokens", [*CLEAN_CHATS, _turns("say <|im_end|> please", "no")], 41),
]


@pytest.fixture
def findings(prepared_open: Callable[..., list[Finding]]) -> Callable[..., list[Finding]]:
    return prepared_open


@pytest.fixture
def prepared_open(
    tmp_path: Any, write_rows: Any, make_tokenizer: Any, template_of: Any
) -> Callable[..., list[Finding]]:
    from peftcli.data.prepare import prepare

    def run(rows: list[Any], template: str | None = None, *, stop: bool = False, **keys: Any) -> list[Finding]:
        write_rows(rows)
        write_rows(CLEAN_PAIRS, "clean.jsonl")
        tokenizer = make_tokenizer(template=template or template_of("chatml"))
        config = DataConfig.model_validate({"train": "rows.jsonl", "validation": 0, "max_length": 4096, **keys})
        data = prepare(config, tokenizer=tokenizer, folder=tmp_path, seed=0, stop_on_failures=stop)
        return data.findings

    return run


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: f"{planted.check}-{planted.row}")
def test_a_planted_defect_is_found_with_its_row(findings: Any, planted: Planted) -> None:
    found = findings(planted.rows, planted.template, **planted.keys)
    named = [each for each in found if each.check == planted.check]
    assert len(named) == 1, found
    assert (named[0].row, named[0].count) == (planted.row, planted.count), named[0]
    assert named[0].file == "rows.jsonl"
    print(f"{planted.check}: 1 of 1 planted defects found")


def test_label_balance_needs_no_tokens(tmp_path: Any, write_rows: Any) -> None:
    rows = [{"text": sentence(number), "label": "common"} for number in range(60)]
    write_rows([*rows, {"text": "x", "label": "rare"}])
    (parts,) = read_parts(DataConfig(train="rows.jsonl", validation=0), folder=tmp_path, limit=1)
    assert [(each.check, each.row) for each in parts.findings] == [("label-balance", 61)]
    write_rows([{**row, "label": f"label {number % 3}"} for number, row in enumerate(rows)])
    (parts,) = read_parts(DataConfig(train="rows.jsonl", validation=0), folder=tmp_path, limit=1)
    assert parts.findings == []


def test_every_check_has_a_planted_defect() -> None:
    assert {planted.check for planted in PLANTED} | {"label-balance", "duplicate-keys"} == set(check_names())


@pytest.mark.parametrize("rows", [CLEAN_CHATS, CLEAN_PAIRS, CLEAN_TEXT], ids=["chats", "pairs", "text"])
def test_a_clean_set_gives_no_finding(findings: Any, rows: list[Any]) -> None:
    found = findings(rows, validation=0.2)
    print(f"{len(all_checks())} checks on {len(rows)} clean rows: {len(found)} findings")
    assert found == []


def test_rows_with_a_common_opening_are_not_alike(findings: Any) -> None:
    opening = " ".join(sentence(number) for number in range(200, 206))
    rows = [
        {"prompt": f"{opening} {sentence(number)}", "completion": f" {sentence(number + 600)}"} for number in range(40)
    ]
    assert findings(rows) == []


@pytest.mark.parametrize(
    "planted", [each for each in PLANTED if all_checks()[each.check].default == "fail"], ids=lambda each: each.check
)
def test_a_failing_check_stops_the_run_and_can_be_turned_down(findings: Any, planted: Planted) -> None:
    with pytest.raises(DataError, match=planted.check) as caught:
        findings(planted.rows, planted.template, stop=True, **planted.keys)
    assert f"rows.jsonl:{planted.row}" in caught.value.render()
    assert caught.value.exit_code == 3
    warned = findings(planted.rows, planted.template, stop=True, checks={planted.check: "warn"}, **planted.keys)
    assert planted.check in {each.check for each in warned if each.severity == "warn"}
    silent = findings(planted.rows, planted.template, stop=True, checks={planted.check: "off"}, **planted.keys)
    assert planted.check not in {each.check for each in silent}


def test_a_warning_can_be_made_to_fail(findings: Any) -> None:
    with pytest.raises(DataError, match="duplicates"):
        findings([*CLEAN_TEXT, CLEAN_TEXT[0]], stop=True, checks={"duplicates": "fail"})


def test_secrets_are_never_quoted(findings: Any) -> None:
    secret = "hf_" + "aB3" * 12
    found = findings([*CLEAN_TEXT, {"text": f"token {secret}"}])
    lines = findings_lines(found)
    assert [json.loads(line)["check"] for line in lines] == ["secrets"]
    assert secret not in "".join(lines)


def test_no_false_alarm_on_real_sets(ground: Any) -> None:
    from transformers import AutoTokenizer

    from peftcli.data.prepare import prepare

    tokenizer = AutoTokenizer.from_pretrained(ground / "models" / "bpe8k")
    config = DataConfig.model_validate({
        "train": "data/gsm8k/test.jsonl", "columns": {"prompt": "question", "completion": "answer"},
    })  # fmt: skip
    found = prepare(config, tokenizer=tokenizer, folder=ground, seed=0).findings
    # questions and answers without a border, on a base without a chat template: that one is no false alarm
    assert [each.check for each in found] == ["missing-border"]
    config = DataConfig(train="data/tales/train.jsonl", validation="data/tales/eval.jsonl")
    assert prepare(config, tokenizer=tokenizer, folder=ground, seed=0).findings == []


@pytest.mark.parametrize(
    "text",
    [
        "Déjà vu : l’été à Paris était « très agréable », où est-il passé ?",
        "A AÇÃO NÃO É ÓBVIA – 25 °C, §3, ½ €20, x² ± ¾",
        "Привет, как дела? «Хорошо» — ответил он…",
        "今天天气很好，我们去公园散步吧。こんにちは",
        "Tiếng Việt là ngôn ngữ của người Việt",
        "Größe, Straße, MÜNCHEN, Žižek, İstanbul, Łódź",
        "مرحبا بالعالم שלום עולם नमस्ते 안녕하세요",
        "→ ✓ • ½ ≥ ∑ 🙂👍🏽 “quoted” ‘single’ … — –",
    ],
)
def test_languages_are_no_junk(text: str) -> None:
    assert junk_in(text) is None


def test_keys_beyond_the_signed_integers_are_compared() -> None:
    """The largest 64-bit keys, near each other: with numpy 2.0.0 membership by a table overflows there."""
    top = 2**64 - 1
    validation: Any = SimpleNamespace(key=np.array([top - 3, top, 7], dtype=np.uint64))
    train: Any = SimpleNamespace(key=np.array([top, top - 1], dtype=np.uint64))
    assert trained_on(Review(train, validation)) == [1]
