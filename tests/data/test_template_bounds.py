"""Chat templates: rendered as transformers renders them, and bounded in size, work, memory and output."""

from __future__ import annotations

import itertools
import resource
import time
from types import SimpleNamespace
from typing import Any

import pytest

from peftcli.data.chat.sandbox import TemplateRefusal
from peftcli.data.chat.template import MAX_TEMPLATE_BYTES, ChatTemplate
from peftcli.errors import ModelError

MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]

HOSTILE = [
    "{{ 'x' * 2000000000 }}",
    "{{ 'x' * 20000000000 }}",
    "{{ [1] * 2000000000 }}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{{ i }}{% endfor %}{% endfor %}",
    "{% set ns = namespace(x='aaaa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% set ns = namespace(x='aaaa') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% macro f(x) %}{{ x }}{{ x }}{% endmacro %}{% set ns = namespace(x='aa') %}"
    "{% for i in range(60) %}{% set ns.x = f(ns.x) %}{% endfor %}",
    "{% set ns = namespace(x='aa') %}{% for i in range(60) %}"
    "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}",
    "{{ 'x'.ljust(2000000000) }}",
    "{{ 'x'.center(2000000000) }}",
    "{{ 'x'.zfill(2000000000) }}",
    "{{ '\t'.expandtabs(2000000000) }}",
    "{{ '%02000000000d' % 1 }}",
    "{{ '%02000000000d' | format(1) }}",
    "{{ '{:>2000000000}'.format(1) }}",
    "{{ 'a' | replace('', 'b' * 100000) | replace('b', 'c' * 100000) }}",
    "{{ range(100000) | list | join('x' * 100000) }}",
    "{{ ('x' * 100000).join(range(100000) | list) }}",
    "{{ 2 ** 999999999 }}",
    "{{ 'x' | indent(2000000000) }}",
    "{{ messages | tojson(indent=2000000000) }}",
    "{{ messages | batch(2000000000, 1) | list }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ messages.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{% extends 'x' %}",
    "{{ messages.append(1) }}",
    "{% set messages[0].role = 1 %}",
    "{{ lipsum.__globals__ }}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "x" * (MAX_TEMPLATE_BYTES + 1),
]


@pytest.mark.parametrize("source", HOSTILE, ids=lambda source: source[:40])
def test_hostile_templates_are_refused_quickly_and_in_little_memory(source: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    with pytest.raises(ModelError) as caught:
        ChatTemplate(source, {}).render(MESSAGES)
    assert time.process_time() - began < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 700 << 10
    assert caught.value.exit_code == 4
    assert len(caught.value.render()) < 1000


def test_a_template_without_end_is_stopped_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: next(ticks) / 10)
    monkeypatch.setattr("peftcli.data.chat.budget.time", clock)
    source = "{% for i in range(900) %}{% for j in range(900) %}{{ '' }}{% endfor %}{% endfor %}"
    with pytest.raises(ModelError, match="seconds"):
        ChatTemplate(source, {}).render(MESSAGES)


def test_a_refusal_of_the_template_itself_is_told_apart() -> None:
    with pytest.raises(TemplateRefusal, match="roles"):
        ChatTemplate("{{ raise_exception('roles') }}", {}).render(MESSAGES)


@pytest.mark.parametrize("name", ["chatml", "qwen3", "gemma", "mistral", "phi", "zephyr"])
@pytest.mark.parametrize("prompt", [False, True])
def test_templates_render_as_in_transformers(name: str, prompt: bool, make_tokenizer: Any, template_of: Any) -> None:
    tokenizer = make_tokenizer(template=template_of(name))
    ours = ChatTemplate(
        tokenizer.chat_template, {key: str(value) for key, value in tokenizer.special_tokens_map.items()}
    )
    for messages in (MESSAGES, [{"role": "system", "content": "be kind"}, *MESSAGES, MESSAGES[0]]):
        theirs = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        assert ours.render(messages, prompt=prompt) == theirs


def test_generation_marks_and_loop_controls_are_understood() -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'user' %}{% continue %}{% endif %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% break %}{% endfor %}"
    )
    assert ChatTemplate(source, {}).render([*MESSAGES, *MESSAGES]) == "yo"


def test_dates_do_not_move() -> None:
    assert ChatTemplate("{{ strftime_now('%d %b %Y') }}", {}).render(MESSAGES) == "26 Jul 2024"


def test_a_failing_template_names_its_line() -> None:
    with pytest.raises(ModelError) as caught:
        ChatTemplate("one\ntwo\n{{ messages[0].content + 1 }}", {}).render(MESSAGES)
    assert caught.value.where == "chat template, line 3"
    with pytest.raises(ModelError, match="line 2"):
        ChatTemplate("one\n{% for %}", {})
