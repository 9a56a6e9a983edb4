"""Thoughts before an answer: trained, masked or weighed, by the recipe and by the turn, whatever writes them."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peftcli.data.chat.thoughts import thoughts_in
from peftcli.errors import DataError, RecipeError

QWEN3 = (Path(__file__).parent / "templates" / "qwen3.jinja").read_text(encoding="utf-8")
# the content as it is given, between marks of the turn
VERBATIM = (
    "{%- for m in messages -%}<|{{ m.role }}|>{{ m.content }}<|end|>{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)
# the prompt opens the thought
OPENED = VERBATIM.replace("<|assistant|>{%- endif", "{{ '<|assistant|><think>\n' }}{%- endif")
# a channel for the thought and one for the answer
CHANNELS = (
    "{%- for m in messages -%}{%- if m.role == 'assistant' -%}"
    "{%- if m.thinking -%}<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{%- endif -%}"
    "<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|end|>"
    "{%- else -%}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|start|>assistant{%- endif -%}"
)
# the thoughts of every turn, cut off where the content holds them
CUTTING = VERBATIM.replace("m.content }}", "m.content.split('</think>')[-1] }}")
SPECIALS = [
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|start|>",
    "<|channel|>",
    "<|message|>",
]
ASKED = {"role": "user", "content": "why?"}


def _answer(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def _stretches(row: Any, tokenizer: Any) -> list[tuple[float, str]]:
    """Stretches of one weight that carry loss, and the zeros between them."""
    pairs = zip(row.weights.tolist(), row.input_ids.tolist(), strict=True)
    found = [(weight, [token for _, token in group]) for weight, group in groupby(pairs, key=lambda pair: pair[0])]
    return [(round(weight, 6), tokenizer.decode(ids)) for weight, ids in found]


WRITTEN = [
    ("apart", QWEN3, _answer("no", reasoning_content="hm\nhm"), "<think>\nhm\nhm\n</think>\n\n", "no<|im_end|>"),
    ("split off", QWEN3, _answer("<think>\nhm\n</think>\n\nno"), "<think>\nhm\n</think>\n\n", "no<|im_end|>"),
    ("before a call", QWEN3, _answer("", thinking="hm", tool_calls=[{"name": "look", "arguments": {"at": "it"}}]),
     "<think>\nhm\n</think>\n\n", '<tool_call>\n{"name": "look", "arguments": {"at": "it"}}\n</tool_call><|im_end|>'),
    ("verbatim", VERBATIM, _answer("<think>hm</think>\nno"), "<think>hm</think>\n", "no<|end|>"),
    ("same line", VERBATIM, _answer("[THINK]hm[/THINK] no"), "[THINK]hm[/THINK]", " no<|end|>"),
    ("own marks", VERBATIM, _answer("<|begin_of_thought|>\nhm\n<|end_of_thought|>\n\nno"),
     "<|begin_of_thought|>\nhm\n<|end_of_thought|>\n\n", "no<|end|>"),
    ("channels", CHANNELS, _answer("no", thinking="hm"),
     "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>", "no<|end|>"),
]  # fmt: skip


@pytest.mark.parametrize(("thoughts", "share"), [("train", 1.0), ("mask", 0.0), (0.25, 0.25), (2, 2.0)])
@pytest.mark.parametrize(("name", "template", "answer", "thought", "rest"), WRITTEN, ids=[row[0] for row in WRITTEN])
def test_a_thought_weighs_what_the_recipe_says(
    name: str, template: str, answer: Any, thought: str, rest: str, thoughts: Any, share: float,
    make_tokenizer: Any, prepared: Any,
) -> None:  # fmt: skip
    tokenizer = make_tokenizer(specials=SPECIALS, template=template)
    # several rows of one shape: those after the first are recognised by what was learnt from it
    rows = [{"messages": [{**ASKED, "content": f"why {number}?"}, answer]} for number in range(3)]
    data = prepared(rows, tokenizer=tokenizer, thoughts=thoughts)
    plain = prepared(rows, tokenizer=tokenizer)
    for number in range(3):
        row = data.train[number]
        (_, context), *trained = _stretches(row, tokenizer)
        trained = [pair for pair in trained if pair[1].strip()]
        wanted = [(1.0, thought + rest)] if share == 1 else [(share, thought), (1.0, rest)]
        assert trained == [pair for pair in wanted if pair[0]]
        assert context.endswith(thought) == (share == 0)
        # no token is another one than without the key
        assert row.input_ids.tolist() == plain.train[number].input_ids.tolist()


def test_people_see_what_a_thought_weighs(make_tokenizer: Any, prepared: Any) -> None:
    from peftcli.reports.data_text import rows_text
    from peftcli.runs.showing import shown_row

    tokenizer = make_tokenizer(specials=SPECIALS, template=VERBATIM)
    rows = [{"messages": [ASKED, _answer("<think>hm</think>\nno")]}]
    shown = {each: rows_text([shown_row(prepared(rows, tokenizer=tokenizer, thoughts=each).train[0], tokenizer)])
             for each in ("train", "mask", 0.5)}  # fmt: skip
    assert "[[<think>hm</think>" in shown["train"]
    assert "<think>hm</think>\n[[no" in shown["mask"]
    assert "[[(0.5 x) <think>hm</think>\n]][[no" in shown[0.5]


def test_what_the_prompt_opened_is_a_thought_too(make_tokenizer: Any, prepared: Any) -> None:
    tokenizer = make_tokenizer(specials=SPECIALS, template=OPENED)
    rows = [{"messages": [ASKED, _answer("<think>\nhm\n</think>\n\nno")]}]
    data = prepared(rows, tokenizer=tokenizer, thoughts="mask")
    assert _stretches(data.train[0], tokenizer)[1:] == [(1.0, "no<|end|>")]


def test_a_turn_says_it_for_itself(make_tokenizer: Any, prepared: Any) -> None:
    tokenizer = make_tokenizer(specials=SPECIALS, template=VERBATIM)
    said = "<think>hm</think>\n"
    turns = [
        *(ASKED, _answer(f"{said}a")),
        *(ASKED, _answer(f"{said}b", thought_weight=1)),
        *(ASKED, _answer(f"{said}c", thought_weight=0.5, weight=2)),
        *(ASKED, _answer(f"{said}d", train=False)),
    ]
    data = prepared([{"messages": turns}], tokenizer=tokenizer, thoughts="mask")
    shown = [(weight, text) for weight, text in _stretches(data.train[0], tokenizer) if weight]
    assert shown == [
        (1.0, "a<|end|>"),
        (1.0, f"{said}b<|end|>"),
        (1.0, said),
        (2.0, "c<|end|>"),
    ]
    for wrong in (-1, "much", True):
        with pytest.raises(DataError, match=r"'thought_weight' must be a finite number"):
            prepared([{"messages": [ASKED, _answer("a", thought_weight=wrong)]}], tokenizer=tokenizer)
    with pytest.raises(DataError, match="only answers have thoughts"):
        prepared([{"messages": [{**ASKED, "thought_weight": 0}, _answer("a")]}], tokenizer=tokenizer)


def test_a_template_gets_no_key_that_is_ours(make_tokenizer: Any, prepared: Any) -> None:
    template = VERBATIM.replace("{{ m.content }}", "{{ m.content }}{{ m.keys() | list | length }}")
    tokenizer = make_tokenizer(specials=SPECIALS, template=template)
    data = prepared([{"messages": [ASKED, _answer("a", thought_weight=0)]}], tokenizer=tokenizer)
    assert "a2<|end|>" in tokenizer.decode(data.train[0].input_ids)


def test_a_model_is_asked_for_the_thought_that_is_masked(make_tokenizer: Any, prepared: Any) -> None:
    from peftcli.data.cases import answer_budget, generation_cases

    tokenizer = make_tokenizer(specials=SPECIALS, template=VERBATIM)
    rows = [{"messages": [ASKED, _answer("<think>h</think>\nyes"), ASKED, _answer("<think>hm</think>\nno")]}]
    cases, budgets = [], []
    for thoughts in ("train", "mask", 0.5):
        data = prepared(rows, tokenizer=tokenizer, thoughts=thoughts)
        cases.append(generation_cases(data.train, tokenizer, 1)[0])
        budgets.append(answer_budget(data.train))
    assert {case.prompt_text[-22:] for case in cases} == {"<|user|>why?<|end|><|assistant|>"[-22:]}
    assert {case.reference_text for case in cases} == {"<think>hm</think>\nno"}
    assert len(set(budgets)) == 1


def test_without_a_template_the_thought_of_a_completion_is_a_piece(plain_tokenizer: Any, prepared: Any) -> None:
    rows = [{"prompt": "why?\n", "completion": "<think>\nhm\n</think>\nno"}]
    data = prepared(rows, tokenizer=plain_tokenizer, thoughts="mask")
    assert _stretches(data.train[0], plain_tokenizer) == [
        (0.0, "<s>why?\n<think>\nhm\n</think>\n"),
        (1.0, "no</s>"),
    ]


def test_all_may_be_trained_but_the_thoughts(make_tokenizer: Any, prepared: Any) -> None:
    tokenizer = make_tokenizer(specials=SPECIALS, template=VERBATIM, adds_bos=False)
    data = prepared(
        [{"messages": [ASKED, _answer("<think>hm</think>\nno")]}], tokenizer=tokenizer, thoughts="mask", train_on="all"
    )
    found = _stretches(data.train[0], tokenizer)
    assert [text for weight, text in found if not weight][-1] == "<think>hm</think>\n"
    assert [text for weight, text in found if weight][-1] == "no<|end|>"


def test_a_thought_that_a_template_cuts_off_is_told(make_tokenizer: Any, prepared: Any) -> None:
    tokenizer = make_tokenizer(specials=SPECIALS, template=CUTTING)
    data = prepared([{"messages": [ASKED, _answer("<think>hm</think>no")]}], tokenizer=tokenizer)
    assert [(each.check, each.count) for each in data.findings] == [("dropped-thoughts", 1)]
    assert _stretches(data.train[0], tokenizer)[1:] == [(1.0, "no<|end|>")]


def test_documents_have_no_thoughts(plain_tokenizer: Any, prepared: Any) -> None:
    with pytest.raises(RecipeError, match="documents have no answers"):
        prepared([{"text": "a text"}], tokenizer=plain_tokenizer, thoughts="mask")


def test_the_cache_knows_the_key(tmp_path: Path, make_tokenizer: Any, write_rows: Any) -> None:
    from peftcli.data.config import DataConfig
    from peftcli.data.prepare import prepare

    tokenizer = make_tokenizer(specials=SPECIALS, template=VERBATIM)
    write_rows([{"messages": [ASKED, _answer("<think>hm</think>\nno")]}])
    sums = []
    for thoughts in ("train", "mask", 0.5, "train"):
        config = DataConfig.model_validate({"train": "rows.jsonl", "validation": 0, "thoughts": thoughts})
        data = prepare(config, tokenizer=tokenizer, folder=tmp_path, seed=0, cache_dir=tmp_path / "cache")
        sums.append(float(np.asarray(data.train[0].weights).sum()))
    assert sums[0] == sums[3]
    assert sums[1] < sums[2] < sums[0]
    assert sums[2] == (sums[0] + sums[1]) / 2


@pytest.mark.parametrize(
    ("text", "before", "found"),
    [
        ("<think>a</think>\n\nb", "", ["<think>a</think>\n\n"]),
        ("a</think>b", "<think>\n", ["a</think>"]),
        ("a</think>b", "", []),
        ("Write `<think>x</think>` around it", "", []),
        ("<think>a</think>\nb\n<think>c</think>\nd", "", ["<think>a</think>\n", "<think>c</think>\n"]),
        ("<think>cut before its end", "", ["<think>cut before its end"]),
        ("<thinking>a</think>b</thinking> c", "", ["<thinking>a</think>b</thinking>"]),
        ("no thought", "", []),
    ],
)
def test_where_thoughts_stand(text: str, before: str, found: list[str]) -> None:
    assert [text[start:end] for start, end in thoughts_in(text, before)] == found
