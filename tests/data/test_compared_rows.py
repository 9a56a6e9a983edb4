"""Rows of compared answers as tokens: the prompt once, each answer trained as it would be alone, both cut alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from peftcli.data.config import DataConfig
from peftcli.data.encode.compared import CHOSEN, PROMPT, REJECTED, keep_answers
from peftcli.data.encode.language import LANGUAGE
from peftcli.data.prepare import PreparedData, prepare
from peftcli.data.store import EncodedRow
from peftcli.errors import DataError, ModelError, PeftcliError
from peftcli.models.builtin import builtin_base
from peftcli.tasks.preference_config import PreferenceConfig
from peftcli.tasks.preferences.arranging import arranged, require_pairs
from peftcli.tasks.preferences.batching import OTHER, collate
from peftcli.tasks.preferences.encoding import encoding_of

USER, GOOD, BAD = (
    {"role": "user", "content": "Name a colour."},
    {"role": "assistant", "content": "Red it is"},
    {"role": "assistant", "content": "Red? No, I will not"},
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(builtin_base("tiny"), local_files_only=True)


def prepared(
    folder: Path, tokenizer: Any, rows: list[dict[str, Any]], *, plain: bool = False, **config: Any
) -> PreparedData:
    name = "plain.jsonl" if plain else "rows.jsonl"
    (folder / name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return prepare(
        DataConfig(train=name, validation=0, checks={"duplicates": "off"}, **config),
        tokenizer=tokenizer,
        folder=folder,
        seed=1,
        encoding=LANGUAGE if plain else encoding_of("preference"),
    )


def one(folder: Path, tokenizer: Any, row: dict[str, Any], **config: Any) -> EncodedRow:
    return prepared(folder, tokenizer, [row], **config).train[0]


def reading(row: EncodedRow, part: int) -> tuple[list[int], list[float]]:
    kept = (row.parts == PROMPT) | (row.parts == part)
    return row.input_ids[kept].tolist(), row.weights[kept].tolist()


def test_each_side_is_the_conversation_that_it_would_be_alone(tmp_path: Path, tokenizer: Any) -> None:
    row = one(tmp_path, tokenizer, {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]})
    for part, answer in ((CHOSEN, GOOD), (REJECTED, BAD)):
        alone = one(tmp_path, tokenizer, {"messages": [USER, answer]}, plain=True)
        assert reading(row, part) == (alone.input_ids.tolist(), alone.weights.tolist())
    # both answers begin alike, and that is no part of the prompt
    assert row.weights[row.parts == PROMPT].sum() == 0
    assert row.weights[row.parts == CHOSEN][0] == row.weights[row.parts == REJECTED][0] == 1


def test_whole_transcripts_are_parted_where_they_part(tmp_path: Path, tokenizer: Any) -> None:
    first = "\n\nHuman: Name a colour.\n\nAssistant:"
    row = one(tmp_path, tokenizer, {"chosen": f"{first} {GOOD['content']}", "rejected": f"{first} {BAD['content']}"})
    other = one(tmp_path, tokenizer, {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]})
    assert (row.input_ids.tolist(), row.parts.tolist()) == (other.input_ids.tolist(), other.parts.tolist())


def test_whole_conversations_share_their_prompt(tmp_path: Path, tokenizer: Any) -> None:
    again = [USER, GOOD, {"role": "user", "content": "Another."}]
    row = one(tmp_path, tokenizer, {"chosen": [*again, GOOD], "rejected": [*again, BAD]})
    text = tokenizer.decode(row.input_ids[row.parts == PROMPT])
    # the answer of an earlier turn is context
    assert GOOD["content"] in text
    assert "Another." in text


@pytest.mark.parametrize("template", [True, False])
def test_texts_are_what_a_prompt_and_its_completion_are(template: bool, tmp_path: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(builtin_base("tiny"), local_files_only=True)
    if not template:
        tokenizer.chat_template = None
    row = one(tmp_path, tokenizer, {"prompt": "A colour:", "chosen": " red", "rejected": " no"})
    for part, answer in ((CHOSEN, " red"), (REJECTED, " no")):
        alone = one(tmp_path, tokenizer, {"prompt": "A colour:", "completion": answer}, plain=True)
        assert reading(row, part) == (alone.input_ids.tolist(), alone.weights.tolist())


def test_verdicts_have_one_side_and_pairs_are_asked_for(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"prompt": f"A colour {n}:", "completion": " red", "label": bool(n % 2)} for n in range(4)]
    store = prepared(tmp_path, tokenizer, rows).train
    assert [set(row.parts.tolist()) for row in store] == [{PROMPT, REJECTED}, {PROMPT, CHOSEN}] * 2
    with pytest.raises(DataError, match="compares two") as caught:
        arranged(store, PreferenceConfig())
    assert "rows.jsonl:1" in caught.value.render()
    assert "kto" in caught.value.render()
    with pytest.raises(DataError, match="needs"):
        require_pairs(store, "a reward needs two")
    with_other = arranged(store, PreferenceConfig(loss="kto"))
    batch = collate([with_other[0], with_other[1]], pad_token_id=0)
    assert batch["present"].tolist() == [[False, True], [True, False]]
    # the answer of another row, trained nowhere
    assert with_other[0].parts.max() == OTHER
    assert with_other.trained.tolist() == store.trained.tolist()
    with pytest.raises(DataError, match="one row only"):
        arranged(store.take(np.array([0])), PreferenceConfig(loss="kto"))


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_long_row_is_cut_so_that_either_side_fits(side: str, tmp_path: Path, tokenizer: Any) -> None:
    row = {"prompt": "one two three " * 9, "chosen": " red blue" * 4, "rejected": " no" * 9}
    whole = one(tmp_path, tokenizer, row)
    room = max(len(reading(whole, part)[0]) for part in (CHOSEN, REJECTED)) - 4
    cut = one(tmp_path, tokenizer, row, max_length=room, truncation=side)
    assert max(len(reading(cut, part)[0]) for part in (CHOSEN, REJECTED)) == room
    if side == "left":
        assert all(reading(cut, part)[0][-4:] == reading(whole, part)[0][-4:] for part in (CHOSEN, REJECTED))


def test_max_length_is_of_a_prompt_with_one_answer(tmp_path: Path, tokenizer: Any) -> None:
    row = {"prompt": "one two three", "chosen": " red blue" * 4, "rejected": " no" * 9}
    longest = max(len(reading(one(tmp_path, tokenizer, row), part)[0]) for part in (CHOSEN, REJECTED))
    kept = one(tmp_path, tokenizer, row, max_length=longest)
    assert len(kept.input_ids) > longest
    with pytest.raises(DataError, match="longer than max_length"):
        one(tmp_path, tokenizer, row, max_length=longest - 1)


def test_cutting_gives_up_the_other_part_last() -> None:
    parts = np.array([PROMPT] * 5 + [CHOSEN] * 3 + [REJECTED] * 6)
    weights = (parts > 0).astype(np.float32)
    assert parts[keep_answers(parts, weights, 4, "left")].tolist() == [CHOSEN] * 3 + [REJECTED] * 4
    assert parts[keep_answers(parts, weights, 6, "right")].tolist() == [PROMPT] * 5 + [CHOSEN, REJECTED]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [GOOD]}, "are the same"),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [USER]}, "no token that could be learned"),
        ({"prompt": "a", "chosen": [GOOD], "rejected": "b"}, "all be texts or all be messages"),
    ],
)
def test_rows_that_teach_nothing_are_told(row: dict[str, Any], says: str, tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(PeftcliError, match=says) as caught:
        one(tmp_path, tokenizer, row)
    assert caught.value.exit_code == 3


def test_messages_need_a_template(tmp_path: Path) -> None:
    bare = transformers.AutoTokenizer.from_pretrained(builtin_base("tiny"), local_files_only=True)
    bare.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        one(tmp_path, bare, {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]})
