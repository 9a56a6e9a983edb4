"""`model.chat_template_kwargs`: one mode in training, evaluation, generation and chat, recorded and checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from peftcli.cli.entry import run as command
from peftcli.errors import PeftcliError
from peftcli.evaluation.prompts import encode_messages
from peftcli.planning.plan import prepare_run
from peftcli.planning.text import plan_text
from peftcli.recipe import load_recipe

TEMPLATE = (
    "{% if dated %}{{ strftime_now('%Y-%m-%d') + '\\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|' + m.role + '|>' }}{% if m.role == 'assistant' and not quick %}{{ 'hm ' }}{% endif %}"
    "{{ m.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% if not quick %}{{ 'hm ' }}{% endif %}{% endif %}"
)
RECIPE = """
model: {{base: builtin:tiny, chat_template: t.jinja, chat_template_kwargs: {kwargs}}}
data: {{train: rows.jsonl, validation: 2}}
method: lora
training: {{max_steps: 2, batch_size: 2}}
evaluation: {{samples: 0}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Any:
    def write(kwargs: str, template: str = TEMPLATE, **overrides: Any) -> Path:
        (tmp_path / "t.jinja").write_text(template, encoding="utf-8")
        rows = [
            {"messages": [{"role": "user", "content": f"row {n}"}, {"role": "assistant", "content": f"yes {n}"}]}
            for n in range(8)
        ]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        path = tmp_path / "r.yaml"
        path.write_text(RECIPE.format(kwargs=kwargs))
        return path

    return write


def test_training_and_inference_are_in_one_mode_and_the_record_says_which(recipe: Any, tmp_path: Path) -> None:
    prepared = prepare_run(load_recipe(recipe("{quick: true, dated: true, strftime_now: 2026-11-27}"), ()))
    tokenizer, row = prepared.tokenizer, prepared.data.train[0]
    asked = [{"role": "user", "content": tokenizer.decode(row.input_ids).split("<|user|>")[1].split("<")[0]}]
    prompt = encode_messages(tokenizer, asked)
    assert row.input_ids[: len(prompt)].tolist() == prompt
    assert tokenizer.decode(prompt).startswith("2026-11-27\n")
    assert not tokenizer.decode(prompt).endswith("hm ")
    assert prepared.plan.chat == "dated: true, quick: true, dated 2026-11-27"
    assert "chats       dated: true, quick: true, dated 2026-11-27" in plan_text(prepared.plan)
    # the mode goes where the tokenizer goes
    tokenizer.save_pretrained(tmp_path / "saved")
    from transformers import AutoTokenizer

    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert encode_messages(again, asked) == prompt
    other = prepare_run(load_recipe(recipe("{quick: false, dated: true, strftime_now: 2026-11-27}"), ()))
    assert other.data.facts.template_sha256 != prepared.data.facts.template_sha256
    assert other.data.facts.train.stream_sha256 != prepared.data.facts.train.stream_sha256


def test_a_run_keeps_its_mode_in_adapter_card_and_lock(recipe: Any, tmp_path: Path) -> None:
    path = recipe("{quick: true}")
    run = tmp_path / "run"
    assert command(["train", str(path), "--output", str(run), "--quiet"]) == 0
    kept = json.loads((run / "adapter" / "tokenizer_config.json").read_text())
    assert kept["chat_template_kwargs"] == {"quick": True}
    assert "quick: true" in (run / "adapter" / "README.md").read_text()
    lock = json.loads((run / "recipe.lock").read_text())
    assert lock["recipe"]["model.chat_template_kwargs"][0] == {"quick": True}


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ("{quik: true}", "does not read 'quik'; did you mean 'quick'?"),
        ("{messages: a}", "messages is given by the conversation itself"),
        ("{strftime_now: today}", "must be a date like 2026-11-27"),
        ("{quick: [1]}", "chat_template_kwargs.quick"),
    ],
)
def test_a_variable_that_cannot_be_set_is_told_by_validate_too(
    kwargs: str, said: str, recipe: Any, capsys: Any
) -> None:
    assert command(["validate", str(recipe(kwargs))]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert len(told.strip().splitlines()) <= 5


@pytest.mark.parametrize(
    ("template", "said"), [("{% for %}", "not valid Jinja"), (None, "no such chat template")], ids=["broken", "missing"]
)
def test_validate_opens_the_template(template: str | None, said: str, recipe: Any, capsys: Any, tmp_path: Path) -> None:
    path = recipe("{}", template or "")
    if template is None:
        (tmp_path / "t.jinja").unlink()
    assert command(["validate", str(path)]) == 4
    assert said in capsys.readouterr().err


def test_a_byte_order_mark_stands_in_no_prompt(recipe: Any) -> None:
    prepared = prepare_run(load_recipe(recipe("{}", "\ufeff" + TEMPLATE), ()))
    assert "\ufeff" not in prepared.tokenizer.decode(prepared.data.train[0].input_ids)


def test_the_day_in_prompts_is_stated(recipe: Any) -> None:
    plan = prepare_run(load_recipe(recipe("{dated: true}"), ())).plan
    assert plan.chat == "dated: true, dated 2024-07-26"
    assert any("today's date" in text and "strftime_now" in text for text in plan.warnings)


def test_variables_without_a_template_are_refused(recipe: Any, tmp_path: Path) -> None:
    path = recipe("{quick: true}")
    path.write_text(path.read_text().replace("chat_template: t.jinja, ", "").replace("builtin:tiny", "builtin:tiny"))
    with pytest.raises(PeftcliError, match="does not read 'quick'"):
        prepare_run(load_recipe(path, ()))
