"""The shipped data: pinned bytes, made by the script beside it, with a validation split of values never trained on."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from peftcli.data.builtin import HASHES_PATH, builtin_data, data_names, pinned_hashes
from peftcli.errors import DataError

MAKE_FOLDER = Path(__file__).parent / "make"
COUNTS = {
    "support": (2400, 250),
    "chat": (400, 50),
    "instruct": (800, 80),
    "text": (500, 50),
    "preference": (300, 40),
    "labels": (400, 60),
    "tags": (300, 40),
    "pairs": (400, 60),
}


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in builtin_data(name).read_text(encoding="utf-8").splitlines()]


def records(name: str) -> list[dict[str, str]]:
    return [json.loads(row["messages"][-1]["content"]) for row in rows(name)]


def test_shipped_files_are_the_pinned_ones():
    folder = HASHES_PATH.parent
    hashes = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.glob("*/*.jsonl")
    }
    assert hashes == pinned_hashes()


def test_script_makes_the_shipped_bytes(tmp_path):
    subprocess.run([sys.executable, MAKE_FOLDER / "make_data.py", tmp_path], check=True, capture_output=True)
    made = {
        path.relative_to(tmp_path).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in tmp_path.rglob("*.jsonl")
    }
    assert made == pinned_hashes()


@pytest.mark.parametrize("name", COUNTS)
def test_each_set_has_both_splits_without_repeats(name):
    train, validation = rows(name), rows(f"{name}/validation")
    assert (len(train), len(validation)) == COUNTS[name]
    texts = [json.dumps(row) for row in (*train, *validation)]
    assert len(set(texts)) == len(texts)
    assert builtin_data(name) == builtin_data(f"{name}/train")


def test_names_are_complete():
    assert set(data_names()) == {f"{name}{split}" for name in COUNTS for split in ("", "/train", "/validation")}


def test_unknown_data_is_named_with_near_ones():
    with pytest.raises(DataError, match="builtin:suport") as caught:
        builtin_data("suport")
    assert "`builtin:support`" in caught.value.render()
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("name", ["", "..", "support/..", "support/test", "../data/support"])
def test_name_is_no_path(name):
    with pytest.raises(DataError):
        builtin_data(name)


def test_answers_are_records_of_five_fields_whose_values_stand_in_the_request():
    for row in rows("support") + rows("support/validation"):
        request, answer = (message["content"] for message in row["messages"])
        record = json.loads(answer)
        assert answer == json.dumps(record)
        assert list(record) == ["name", "product", "code", "category", "urgency"]
        for key in ("name", "product", "code"):
            assert request.count(record[key]) == 1


def test_validation_values_never_occur_in_training():
    held_out = records("support/validation")
    values = {record[key] for record in held_out for key in ("name", "code")}
    values |= {record["product"].split()[0] for record in held_out}
    train_text = "".join(builtin_data(name).read_text(encoding="utf-8") for name in COUNTS)
    assert [value for value in sorted(values) if value in train_text] == []


@pytest.fixture(scope="module")
def lessons() -> list:
    code = (
        "import json, random; from lessons import lesson; rng = random.Random(0); "
        "print(json.dumps([lesson(rng) for _ in range(20000)]))"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=MAKE_FOLDER, check=True, capture_output=True, text=True)
    return json.loads(shown.stdout)


def test_pretraining_never_shows_validation_values(lessons):
    text = json.dumps(lessons)
    held_out = records("support/validation")
    values = {record["code"] for record in held_out} | {record["name"] for record in held_out}
    # two words in a row of a longer code are not a code
    whole = r"(?<![A-Za-z-]){}(?![A-Za-z-])"
    shown = [value for value in sorted(values) if value in text and re.search(whole.format(re.escape(value)), text)]
    assert shown == []


def test_pretraining_never_shows_the_target_record_but_all_its_words(lessons):
    turns = [turn for made in lessons if isinstance(made, list) for turn in made]
    answers = [turn["content"] for turn in turns if turn["role"] == "assistant"]
    keys = {"name", "product", "code", "category", "urgency"}
    shown = [set(json.loads(answer)) for answer in answers if answer.startswith('{"')]
    assert max(len(keys & found) for found in shown) < len(keys)
    assert keys <= set().union(*shown)
    prose = " ".join(answer for answer in answers if "{" not in answer)
    words = {word.strip(".,:") for word in prose.split()}
    assert {"billing", "delivery", "repair", "account", "return", "low", "normal", "high"} <= words


@pytest.mark.parametrize("split", ["support", "support/validation"])
def test_classes_are_balanced(split):
    found = records(split)
    for key, classes in (("category", 5), ("urgency", 3)):
        counts = Counter(record[key] for record in found)
        assert len(counts) == classes
        assert min(counts.values()) > 0.7 * len(found) / classes
