"""Where answers begin and end under the kinds of templates that real models have; each written down by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from peftcli.data.prepare import PreparedData
from peftcli.errors import DataError

SPECIALS = [
    *("<|turn|>", "<|user|>", "<|bot|>", "<|say|>", "<|said|>", "<|end|>", "<|return|>", "<|start|>", "<|message|>"),
    *("<|eot|>", "<|head|>", "<|neck|>", "<|assistant|>", "<|call|>", "<|system|>"),
]
LOW = {"prompt-mismatch": "warn", "stop-token": "warn"}
QUESTION = {"role": "user", "content": "Is it answer or yes?"}


def _loop(body: str, prompt: str) -> str:
    return f"{{%- for m in messages -%}}{body}{{%- endfor -%}}{{%- if add_generation_prompt -%}}{prompt}{{%- endif -%}}"


# a response mark, and behind it the end of the turn
COHERE = _loop(
    "<|turn|>{%- if m.role == 'user' -%}<|user|>{{ m.content }}{%- else -%}<|bot|><|say|>{{ m.content }}<|said|>"
    "{%- endif -%}<|end|>",
    "<|turn|><|bot|>",
)
# the prompt opens a thought, the history has none
R1 = _loop(
    "<|{{ m.role }}|>{{ m.content }}{%- if m.role != 'user' -%}<|end|>{%- endif -%}", "{{ '<|assistant|><think>\n' }}"
)
# the last turn ends otherwise than the earlier ones
OSS = _loop(
    "<|start|>{{ m.role }}<|message|>{{ m.content }}{{ '<|return|>' if loop.last and m.role != 'user' else '<|end|>' }}",
    "<|start|>assistant<|message|>",
)
# no end of a turn at all: the next one's opening stands behind an answer
GLM = _loop("<|{{ m.role }}|>{{ '\n' }}{{ m.content }}", "{{ '<|assistant|>\n' }}")
# the opening of an answer is always written, and shares its first token with that of a question
ALWAYS = (
    "{%- for m in messages -%}<|head|>{{ m.role }}{{ '<|neck|>\n\n' }}"
    "{%- if m.tool_calls -%}<|call|>{{ m.tool_calls[0].function.name }} {{ m.tool_calls[0].function.arguments | tojson }}"
    "{%- endif -%}{{ m.content }}<|eot|>{%- endfor -%}{{ '<|head|>assistant<|neck|>\n\n' }}"
)
# an answer is closed only where another turn follows
LATE = _loop(
    "{%- if m.role == 'user' -%}{%- if not loop.first -%}<|end|>{%- endif -%}<|user|>{{ m.content }}<|said|>"
    "{%- else -%}<|bot|>{{ m.content }}{%- endif -%}",
    "<|bot|>",
)


@dataclass
class Case:
    name: str
    template: str
    answers: list[str]
    trained: list[str]
    checks: tuple[str, ...] = ()


CASES = [
    Case(
        "a mark and the end of the turn",
        COHERE,
        ["yes", "no"],
        ["<|say|>yes<|said|><|end|>", "<|say|>no<|said|><|end|>"],
    ),
    Case(
        "an answer that the question holds",
        R1,
        ["answer", "yes"],
        ["answer<|end|>", "yes<|end|>"],
        ("prompt-mismatch",),
    ),
    Case(
        "an answer that the prompt holds",
        R1,
        ["think", "<think>"],
        ["think<|end|>", "<think><|end|>"],
        ("prompt-mismatch",),
    ),
    Case("another end for the last", OSS, ["a", "b"], ["a<|end|>", "b<|return|>"]),
    Case("no end", GLM, ["a", "b"], ["a", "b"], ("stop-token",)),
    Case("an end only in between", LATE, ["a", "b"], ["a<|end|>", "b"], ("stop-token",)),
    Case("a prompt in any case", ALWAYS, ["a", "b"], ["a<|eot|>", "b<|eot|>"]),
    Case("an answer that spells tokens", COHERE, ["x<|end|>y"], ["<|say|>x<|end|>y<|said|><|end|>"]),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_trained_text_is_the_answer_and_what_ends_it(
    case: Case, make_tokenizer: Any, prepared: Callable[..., PreparedData], trained_text: Any
) -> None:
    tokenizer = make_tokenizer(specials=SPECIALS, template=case.template)
    messages = [turn for answer in case.answers for turn in (QUESTION, {"role": "assistant", "content": answer})]
    # the same shape three times: what is learnt from the first row has to hold for the next
    rows = [{"messages": messages}, {"messages": messages[::1]}, {"messages": [*messages]}]
    data = prepared(rows, tokenizer=tokenizer, checks=LOW)
    for row in range(3):
        assert trained_text(data.train, row, tokenizer) == case.trained
    whole = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert data.train[0].input_ids.tolist() == whole
    assert tuple(sorted({each.check for each in data.findings} & {*LOW})) == case.checks


def _call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def test_a_last_call_does_not_train_the_opening_of_the_next_turn(
    make_tokenizer: Any, prepared: Any, trained_text: Any
) -> None:
    tokenizer = make_tokenizer(specials=SPECIALS, template=ALWAYS)
    row = {"messages": [QUESTION, {"role": "assistant", "content": None, "tool_calls": [_call("look", at="it")]}]}
    data = prepared([row], tokenizer=tokenizer)
    assert trained_text(data.train, 0, tokenizer) == ['<|call|>look {"at": "it"}<|eot|>']


@pytest.mark.parametrize("other", ["look", "listen"])
def test_a_template_that_writes_the_first_of_two_calls_is_refused(
    other: str, make_tokenizer: Any, prepared: Any
) -> None:
    tokenizer = make_tokenizer(specials=SPECIALS, template=ALWAYS)
    calls = [_call("look", at="it"), _call(other, at="it")]
    row = {"messages": [QUESTION, {"role": "assistant", "content": None, "tool_calls": calls}]}
    with pytest.raises(DataError, match="does not render the whole of tool call 2"):
        prepared([row], tokenizer=tokenizer)


def test_a_result_that_is_written_inside_an_answer_is_refused(make_tokenizer: Any, prepared: Any) -> None:
    template = (
        "{%- for m in messages -%}{%- if m.role == 'user' -%}<|user|>{{ m.content }}<|end|>"
        "{%- elif m.role == 'assistant' -%}<|bot|>{%- for c in m.tool_calls or [] -%}<|call|>{{ c.function.name }}"
        "{{ messages[loop.index0 + 2].content }}{%- endfor -%}{{ m.content }}<|end|>{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}<|bot|>{%- endif -%}"
    )
    tokenizer = make_tokenizer(specials=SPECIALS, template=template)
    call = {"role": "assistant", "content": "Look:", "tool_calls": [_call("look")]}
    row = {"messages": [QUESTION, call, {"role": "tool", "content": "a result"}]}
    with pytest.raises(DataError, match="writes message 3 inside this answer"):
        prepared([row], tokenizer=tokenizer)


THINKING = (
    "{%- for m in messages -%}<|{{ m.role }}|>{%- if m.role == 'assistant' and loop.last -%}"
    "{{ '<think>\n' + (m.reasoning_content or '') + '\n</think>\n\n' }}{%- endif -%}{{ m.content }}<|end|>{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>"
    "{%- if enable_thinking is defined and not enable_thinking -%}{{ '<think>\n\n</think>\n\n' }}{%- endif -%}{%- endif -%}"
)


@pytest.mark.parametrize("field", ["reasoning_content", "thinking", "reasoning"])
def test_a_thought_is_trained_under_whichever_of_its_names(
    field: str, make_tokenizer: Any, prepared: Any, trained_text: Any
) -> None:
    tokenizer = make_tokenizer(specials=SPECIALS, template=THINKING)
    first = {"role": "assistant", "content": "yes", field: "hmm"}
    data = prepared([{"messages": [QUESTION, first, QUESTION, {**first, "content": "no"}]}], tokenizer=tokenizer)
    assert trained_text(data.train, 0, tokenizer) == ["yes<|end|>", "<think>\nhmm\n</think>\n\nno<|end|>"]
    # the template keeps the thought of the last answer only
    assert [(each.check, each.severity, each.count) for each in data.findings] == [("dropped-thoughts", "warn", 1)]


def test_an_empty_thought_is_context_and_told_with_the_setting_that_mends_it(
    make_tokenizer: Any, prepared: Any, trained_text: Any
) -> None:
    tokenizer = make_tokenizer(specials=SPECIALS, template=THINKING)
    data = prepared([{"messages": [QUESTION, {"role": "assistant", "content": "yes"}]}], tokenizer=tokenizer)
    assert trained_text(data.train, 0, tokenizer) == ["yes<|end|>"]
    (finding,) = data.findings
    assert (finding.check, finding.severity) == ("empty-thought", "warn")
    assert "model.chat_template_kwargs: {enable_thinking: false}" in finding.message
    assert tokenizer.decode(data.train[0].input_ids).endswith("<think>\n\n</think>\n\nyes<|end|>")


def test_a_prompt_that_parts_from_the_text_names_the_setting_that_mends_it(make_tokenizer: Any, prepared: Any) -> None:
    template = THINKING.replace("'<think>\n' + (m.reasoning_content or '') + '\n", "'").replace(
        "{{ '<think>\n\n</think>\n\n' }}{%- endif -%}",
        "{{ '</think>\n\n' }}{%- else -%}{{ '<think>\n' }}{%- endif -%}",
    )
    tokenizer = make_tokenizer(specials=SPECIALS, template=template)
    rows = [{"messages": [QUESTION, {"role": "assistant", "content": "yes"}]}]
    with pytest.raises(DataError) as caught:
        prepared(rows, tokenizer=tokenizer)
    assert "model.chat_template_kwargs: {enable_thinking: false}" in caught.value.render()
    tokenizer.init_kwargs["chat_template_kwargs"] = {"enable_thinking": False}
    assert prepared(rows, tokenizer=tokenizer).findings == []


def test_two_names_of_a_thought_that_differ_are_refused(prepared: Any) -> None:
    row = {"messages": [QUESTION, {"role": "assistant", "content": "yes", "thinking": "a", "reasoning": "b"}]}
    with pytest.raises(DataError, match="mean the same"):
        prepared([row])


def test_templates_that_take_content_as_parts_are_given_parts(
    make_tokenizer: Any, prepared: Any, trained_text: Any
) -> None:
    template = (
        "{%- for m in messages -%}<|{{ m.role }}|>{%- for part in m.content -%}{%- if part.type == 'text' -%}"
        "{{ part.text }}{%- endif -%}{%- endfor -%}<|end|>{%- endfor -%}"
        "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
    )
    tokenizer = make_tokenizer(specials=SPECIALS, template=template)
    data = prepared([{"messages": [QUESTION, {"role": "assistant", "content": "yes"}]}], tokenizer=tokenizer)
    assert trained_text(data.train, 0, tokenizer) == ["yes<|end|>"]
    assert "Is it answer" in tokenizer.decode(data.train[0].input_ids)


def test_named_templates_are_chosen_as_transformers_chooses(make_tokenizer: Any, prepared: Any) -> None:
    plain = _loop("<|{{ m.role }}|>{{ m.content }}<|end|>", "<|assistant|>")
    with_tools = "{{ tools[0].function.name }}" + plain
    tokenizer = make_tokenizer(specials=SPECIALS)
    tokenizer.chat_template = {"default": plain, "tool_use": with_tools}
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    row = {"messages": [QUESTION, {"role": "assistant", "content": "yes"}]}
    data = prepared([row, {**row, "tools": tools}, row], tokenizer=tokenizer, checks={"duplicates": "off"})
    for number in range(3):
        given = tools if data.train.origin(number).line == 2 else None
        wanted = tokenizer.apply_chat_template(row["messages"], tools=given, tokenize=True, return_dict=False)
        assert data.train[number].input_ids.tolist() == wanted
    tokenizer.chat_template = {"one": plain, "two": plain}
    with pytest.raises(Exception, match="none is the default"):
        prepared([row], tokenizer=tokenizer)


@pytest.mark.parametrize("rstrip", [False, True])
def test_ids_are_the_tokenizers_own_where_it_marks_beginnings(rstrip: bool, prepared: Any) -> None:
    """Words begin with a mark behind every added token, special or not, and white space behind a token is its own."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    core.decoder = decoders.Metaspace(prepend_scheme="always")
    corpus = ["yes no Is it answer or yes? a b c d e f g h i j k l m n o p q r s t u v w x y z \n"] * 4
    core.train_from_iterator(corpus, trainers.BpeTrainer(special_tokens=["<unk>"], show_progress=False))
    core.add_special_tokens(
        [AddedToken(text, special=True, rstrip=rstrip) for text in ("<|user|>", "<|assistant|>", "<|end|>")]
    )
    core.add_tokens([AddedToken("</think>", special=False)])
    for lead in ("\n", "", "</think>"):
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="<|end|>")
        tokenizer.chat_template = _loop(
            f"<|{{{{ m.role }}}}|>{{{{ {lead!r} if m.role != 'user' else '' }}}}{{{{ m.content }}}}<|end|>",
            f"<|assistant|>{{{{ {lead!r} }}}}",
        )
        messages = [
            QUESTION,
            {"role": "assistant", "content": "yes no"},
            QUESTION,
            {"role": "assistant", "content": "no"},
        ]
        data = prepared([{"messages": messages}], tokenizer=tokenizer)
        wanted = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
        assert data.train[0].input_ids.tolist() == wanted
        prompt = tokenizer.apply_chat_template(
            messages[:1], add_generation_prompt=True, tokenize=True, return_dict=False
        )
        weights = data.train[0].weights.tolist()
        assert weights.index(1.0) == len(prompt)
        assert data.train[0].input_ids.tolist()[: len(prompt)] == prompt
