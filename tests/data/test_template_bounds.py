"""Chat templates: rendered as transformers renders them, in a process that bounds what they may use."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from typing import Any

import pytest

from peftcli.data.chat import bounds
from peftcli.data.chat.bounds import MAX_TEMPLATE_BYTES, BoundTemplate
from peftcli.data.chat.limits import TemplateRefusal
from peftcli.data.faults import RowFault
from peftcli.data.rows import ChatRow
from peftcli.errors import ModelError

MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]

WORKING = [
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
    "{{ '%*d' % (2000000000, 1) }}",
    "{{ '{:>{}}'.format(1, 2000000000) }}",
    "{{ 'x'.encode().center(2000000000) }}",
    "{{ (1).to_bytes(2000000000, 'big') }}",
    "{{ 'x'.translate({120: 'y' * 1000000}) * 3000 }}",
    "{{ ('x\\n' * 100000) | indent('y' * 100000) }}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(9) %}{% set ns.x = ns.x * 1000000 %}{% endfor %}",
    "{% set ns = namespace(x={}) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% macro f(n) %}{% if n %}{% set x = f(n - 1) or f(n - 1) %}{% endif %}{% endmacro %}{{ f(60) }}",
    "{{ ('9' * 4000) | int ** (('9' * 4) | int) }}",
    "{{ (1e308 * 10) | int }}",
    "{{ (range(100000) | list | tojson) * 5000 }}",
    "{{ range(99999) | map('string') | map('center', 999999) | join }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% set x = a * b %}{% endfor %}{% endfor %}",
    "{{ range(99999) | batch(1) | map('list') | list | tojson(indent=100000) }}",
]
FORBIDDEN = [
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


@pytest.fixture
def little_time(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A third of a second and a fresh process for each template."""
    monkeypatch.setattr(bounds, "MAX_SECONDS", 0.3)
    bounds._process.close()
    yield
    bounds._process.close()


def _outcome(source: str) -> str | ModelError:
    try:
        return BoundTemplate(source, {}).render(MESSAGES)
    except ModelError as error:
        return error


@pytest.mark.parametrize("source", [*WORKING, *FORBIDDEN], ids=lambda source: source[:40])
def test_hostile_templates_end_quickly_and_in_little_memory(source: str, little_time: None) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = os.times()
    outcome = _outcome(source)
    if isinstance(outcome, ModelError):
        assert outcome.exit_code == 4
        assert len(outcome.render()) < 1000
    else:
        # bounded as a whole: what is cheap may go through
        assert source in WORKING
        assert len(outcome) < 4 << 20
    bounds._process.close()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert used.ru_utime + used.ru_stime - children.ru_utime - children.ru_stime < 3
    assert os.times().user - began.user < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


def test_the_row_that_breaks_a_template_is_told_and_the_rows_before_it_stand(little_time: None) -> None:
    bomb = "{% if m.content == 'bomb' %}{{ 'x' * 9000000000 }}{% endif %}"
    source = f"{{% for m in messages %}}{{{{ m.content }}}}{bomb}{{% endfor %}}"
    rows = [ChatRow([{"role": "user", "content": text}], [None]) for text in ("one", "two", "bomb", "three")]
    outcomes = BoundTemplate(source, {}).render_rows(rows)
    assert [getattr(outcome, "text", "error") for outcome in outcomes] == ["one", "two", "error"]
    assert isinstance(outcomes[-1], ModelError)
    # the next template gets a fresh process
    assert BoundTemplate("{{ messages[0].content }}", {}).render(MESSAGES) == "hi"


def test_a_long_row_is_told_from_a_template_that_is_to_blame(little_time: None) -> None:
    """Beyond its beginning it is the row that asks for too much: it is a fault of its own, and the rows behind it stand."""
    bomb = "{% if messages|length > 99 %}{{ 'x' * 9000000000 }}{% endif %}"
    source = f"{{% for m in messages %}}{{{{ m.content }}}}{{% endfor %}}{bomb}"
    rows = [ChatRow([{"role": "user", "content": "x"}] * count, [None] * count) for count in (1, 100, 2)]
    outcomes = BoundTemplate(source, {}).render_rows(rows)
    assert [getattr(outcome, "text", "error") for outcome in outcomes] == ["x", "error", "xx"]
    assert isinstance(outcomes[1], RowFault)
    assert "a conversation of 100 messages" in str(outcomes[1])
    assert "last-turn" in (outcomes[1].fix or "")


def test_a_fork_starts_a_process_of_its_own(little_time: None) -> None:
    template = BoundTemplate("{{ messages[0].content }}", {})
    assert template.render(MESSAGES) == "hi"
    ours = bounds._process._child
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if template.render(MESSAGES[1:]) == "yo" and bounds._process._child is not ours else 2
            bounds._process.close()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert bounds._process._child is ours
    assert template.render(MESSAGES) == "hi"


def test_nothing_of_this_process_reaches_the_template(monkeypatch: pytest.MonkeyPatch, little_time: None) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    BoundTemplate("{{ 1 }}", {}).render(MESSAGES)
    child = bounds._process._child
    assert child is not None
    with open(f"/proc/{child.pid}/environ", "rb") as stream:
        assert b"secret" not in stream.read()


def test_rendering_in_bulk_is_quick() -> None:
    template = BoundTemplate("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", {})
    rows = [ChatRow([{"role": "user", "content": "hello " * 20}] * 4, [None] * 4)] * 2000
    template.render_rows(rows[:1])
    began = time.perf_counter()
    template.render_rows(rows)
    # some 30 microseconds a row alone; the bound is for a very busy machine
    assert time.perf_counter() - began < 30


def test_a_refusal_of_the_template_itself_is_told_apart() -> None:
    with pytest.raises(TemplateRefusal, match="roles"):
        BoundTemplate("{{ raise_exception('roles') }}", {}).render(MESSAGES)


@pytest.mark.parametrize("name", ["chatml", "qwen3", "gemma", "mistral", "phi", "zephyr"])
@pytest.mark.parametrize("prompt", [False, True])
def test_templates_render_as_in_transformers(name: str, prompt: bool, make_tokenizer: Any, template_of: Any) -> None:
    tokenizer = make_tokenizer(template=template_of(name))
    ours = BoundTemplate(
        tokenizer.chat_template, {key: str(value) for key, value in tokenizer.special_tokens_map.items()}
    )
    for messages in (MESSAGES, [{"role": "system", "content": "be kind"}, *MESSAGES, MESSAGES[0]]):
        theirs = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        assert ours.render(messages, prompt=prompt) == theirs


@pytest.mark.parametrize("name", ["function", "context", "operator", "args", "value", "name"])
def test_any_name_may_be_an_argument_of_a_macro_or_namespace(name: str) -> None:
    macro = f"{{% macro say({name}) %}}{{{{ {name} }}}}{{% endmacro %}}{{{{ say({name}='yes') }}}}"
    space = f"{{% set ns = namespace({name}='yes') %}}{{{{ ns.{name} }}}}{{{{ dict({name}='no').{name} }}}}"
    assert BoundTemplate(macro, {}).render(MESSAGES) == "yes"
    assert BoundTemplate(space, {}).render(MESSAGES) == "yesno"


def test_generation_marks_and_loop_controls_are_understood() -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'user' %}{% continue %}{% endif %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% break %}{% endfor %}"
    )
    assert BoundTemplate(source, {}).render([*MESSAGES, *MESSAGES]) == "yo"


def test_dates_do_not_move() -> None:
    assert BoundTemplate("{{ strftime_now('%d %b %Y') }}", {}).render(MESSAGES) == "26 Jul 2024"


def test_a_failing_template_names_its_line() -> None:
    with pytest.raises(ModelError) as caught:
        BoundTemplate("one\ntwo\n{{ messages[0].content + 1 }}", {}).render(MESSAGES)
    assert caught.value.where == "chat template, line 3"
    with pytest.raises(ModelError, match="line 2"):
        BoundTemplate("one\n{% for %}", {})


def test_answers_that_take_too_long_to_find_are_told_as_the_row_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompt of each answer is rendered, so that the work grows with the square of the turns."""
    from peftcli.data.chat import server

    monkeypatch.setattr(server, "ROW_SECONDS", 0.05)
    opening = {
        "do": "open", "source": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", "variables": {},
        "tokens": [], "stops": [], "train_on": "completions", "thoughts": 1.0,
    }  # fmt: skip
    served = server.Server(1.0)
    served.answer(opening)
    turns = [{"role": ("user", "assistant")[number % 2], "content": f"x{number}"} for number in range(3000)]
    rows = [[turns, [None] * len(turns), None], [turns[:4], [None] * 4, None]]
    long, short = served.answer({"do": "rows", "template": 0, "rows": rows})["rows"]
    assert "take more than 0.05 seconds" in long["fault"]
    assert "last-turn" in long["fix"]
    assert len(short["spans"]) == 2
