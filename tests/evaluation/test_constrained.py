"""Answers that are kept to a JSON schema, by the built-in base, which knows none of these schemas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from peftcli.errors import DeviceError, RecipeError
from peftcli.evaluation.config import GenerationConfig
from peftcli.evaluation.generate import generate, generate_stream
from peftcli.models.load import load_model
from peftcli.models.source import resolve_base
from peftcli.models.tokenizer import load_tokenizer

SCHEMA = {
    "type": "object",
    "properties": {
        "kind-of": {"enum": ["delivery", "billing"]},
        "number": {"type": "integer", "minimum": 10, "maximum": 99},
    },
    "required": ["kind-of", "number"],
    "additionalProperties": False,
}
LIST = {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2}


@pytest.fixture(scope="module")
def writer() -> tuple[Any, Any]:
    source = resolve_base("builtin:tiny", folder=Path.cwd())
    return load_model(source), load_tokenizer(source)


def prompts(tokenizer: Any) -> list[list[int]]:
    texts = ("My parcel is late.", "Hello", "I was charged twice, please help me with this bill")
    return [tokenizer(text).input_ids for text in texts]


@pytest.mark.parametrize("draw", [False, True])
def test_every_answer_of_a_batch_is_of_the_schema(writer: tuple[Any, Any], draw: bool) -> None:
    pytest.importorskip("llguidance")
    config = GenerationConfig(max_new_tokens=60, json_schema=SCHEMA, do_sample=draw)
    answers = generate(*writer, prompts(writer[1]), config=config, batch_size=3, seed=5)
    free = generate(*writer, prompts(writer[1]), config=GenerationConfig(max_new_tokens=60))
    for answer, other in zip(answers, free, strict=True):
        assert answer.finish == "stop"
        found = json.loads(answer.text)
        assert found["kind-of"] in ("delivery", "billing")
        assert 10 <= found["number"] <= 99
        assert set(found) == {"kind-of", "number"}
        assert answer.text != other.text
    alone = generate(*writer, prompts(writer[1])[:1], config=config, seed=5)
    if not draw:
        assert alone[0].token_ids == answers[0].token_ids


def test_a_streamed_answer_is_too(writer: tuple[Any, Any]) -> None:
    pytest.importorskip("llguidance")
    pieces: list[str] = []
    config = GenerationConfig(max_new_tokens=60, json_schema=LIST)
    answer = generate_stream(*writer, prompts(writer[1])[0], config=config, stream=pieces.append)
    assert "".join(pieces) == answer.text
    assert [type(item) for item in json.loads(answer.text)] == [bool, bool]


def test_a_schema_that_is_none(writer: tuple[Any, Any]) -> None:
    pytest.importorskip("llguidance")
    with pytest.raises(RecipeError, match="json_schema: "):
        generate(*writer, prompts(writer[1]), config=GenerationConfig(json_schema={"type": "what"}))


def test_without_the_package(writer: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peftcli.evaluation.constrained.JSON_PACKAGE", "no_such_package")
    with pytest.raises(DeviceError, match=r"needs the package") as raised:
        generate(*writer, prompts(writer[1]), config=GenerationConfig(json_schema=LIST))
    assert "peftcli[json]" in raised.value.render()
