"""What a recipe says of writing goes with its adapter: away from the run, into what is merged from it, to other tools."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers

import peftcli
from peftcli.cli.entry import run as peft
from peftcli.evaluation import prompts
from peftcli.models.builtin import builtin_base

RECIPE = """\
model: {base: ./base}
data: {train: builtin:support, validation: 4, max_length: 256}
method: lora
training: {max_steps: 2, batch_size: 4, learning_rate: 5e-2}
evaluation: {samples: 0}
threads: 1
seed: 7
generation: {max_new_tokens: 9, do_sample: true, temperature: 3.0, top_p: 0.95, system_prompt: Be brief.}
"""
PROMPT = ("--prompt", "Finn Shaw here. My BluCon stove is broken.")
BASES_OWN = {"do_sample": True, "temperature": 0.6, "top_k": 30, "max_length": 50}


def trained(folder: Path, recipe: str, **own: Any) -> Path:
    """A folder with a base whose file states settings of its own, a run, its adapter alone, and the merged model."""
    shutil.copytree(builtin_base("tiny"), folder / "base")
    path = folder / "base" / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    (folder / "r.yaml").write_text(recipe)
    peftcli.train(folder / "r.yaml", output=folder / "run")
    shutil.copytree(folder / "run" / "adapter", folder / "alone")
    assert peft(["merge", str(folder / "run"), "--output", str(folder / "merged"), "--quiet"]) == 0
    return folder


@pytest.fixture(scope="module")
def sampling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("sampling"), RECIPE, **BASES_OWN)


def written(folder: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    capsys.readouterr()
    model = ("--model", str(folder.parent / "base")) if folder.name == "alone" else ()
    assert peft(["generate", str(folder), *PROMPT, *model, *more, "--json"]) == 0
    return str(json.loads(capsys.readouterr().out)["answers"][0]["answer"])


def test_run_adapter_and_merged_model_write_the_same(sampling: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Length, draws, their seed and the system prompt are the recipe's, wherever the adapter is."""
    run, alone, merged = (written(sampling / name, capsys) for name in ("run", "alone", "merged"))
    assert run == alone == merged
    # each of the settings counts, and --set is over it
    for change in (
        "generation.max_new_tokens=3",
        "generation.do_sample=false",
        "seed=8",
        "generation.system_prompt=null",
    ):
        changed = {written(sampling / name, capsys, "--set", change) for name in ("run", "merged")}
        assert len(changed) == 1, change
        assert changed != {run}, change


@pytest.mark.parametrize("folder", ["merged", "run/adapter"])
def test_other_tools_find_the_settings_in_the_file_that_they_read(sampling: Path, folder: str) -> None:
    found = json.loads((sampling / folder / "generation_config.json").read_text())
    base = json.loads((sampling / "base" / "generation_config.json").read_text())
    wanted = {"max_new_tokens": 9, "do_sample": True, "temperature": 3.0, "top_p": 0.95, "top_k": 30}
    assert {key: found[key] for key in wanted} == wanted
    assert "max_length" not in found, "it would stand against max_new_tokens"
    untouched = base.keys() - wanted.keys() - {"max_length", "eos_token_id"}
    assert {key: found[key] for key in untouched} == {key: base[key] for key in untouched}


def test_transformers_writes_as_the_recipe_says(sampling: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(sampling / "merged")
    model = transformers.AutoModelForCausalLM.from_pretrained(sampling / "merged")
    ids = tokenizer("one two three", return_tensors="pt")["input_ids"]
    model.generation_config.eos_token_id = None
    drawn = {tuple(model.generate(ids)[0, ids.shape[1] :].tolist()) for _ in range(3)}
    assert {len(answer) for answer in drawn} == {9}
    assert len(drawn) > 1


def test_a_recipe_that_says_nothing_leaves_the_bases_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The defaults of a section are no wish: a base that samples goes on to where other tools write."""
    silent = "\n".join(RECIPE.splitlines()[:-1])
    folder = trained(tmp_path, silent, do_sample=True, temperature=0.6)
    found = json.loads((folder / "merged" / "generation_config.json").read_text())
    base = json.loads((folder / "base" / "generation_config.json").read_text())
    assert {**found, "eos_token_id": None} == {**base, "eos_token_id": None}
    assert "generation" not in json.loads((folder / "merged" / "peftcli.json").read_text())["notes"]
    assert written(folder / "run", capsys) == written(folder / "merged", capsys)


def test_notes_that_no_recipe_can_say_are_refused(
    sampling: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(sampling / "merged", tmp_path / "merged"))
    own = json.loads((folder / "peftcli.json").read_text())
    own["notes"]["generation"]["temperature"] = -1
    (folder / "peftcli.json").write_text(json.dumps(own))
    assert peft(["generate", str(folder), *PROMPT]) == 4
    assert "notes.generation.temperature is -1" in capsys.readouterr().err


# -- where an answer ends --------------------------------------------------------------------------------------------


def test_the_end_of_a_turn_means_nothing_to_an_adapter_of_raw_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token that the template would end a turn with is a word like any other; in a conversation it ends the answer."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": f"row {n} is red"}) + "\n" for n in range(40)))
    recipe = RECIPE.replace("builtin:support", "./rows.jsonl").replace("256", "32").splitlines()[:-1]
    (tmp_path / "r.yaml").write_text("\n".join(recipe).replace("./base", "builtin:tiny"))
    peftcli.train(tmp_path / "r.yaml", output=tmp_path / "run")

    def answers(name: str, *rows: dict[str, Any]) -> list[str]:
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        capsys.readouterr()
        assert peft(["generate", str(tmp_path / "run"), "--input", str(tmp_path / f"{name}.jsonl"), "--json"]) == 0
        return [found["answer"] for found in json.loads(capsys.readouterr().out)["answers"]]

    text, turn = {"prompt": "row 3"}, {"messages": [{"role": "user", "content": "row 3"}]}
    raw, chat = answers("before", text, turn)
    assert raw
    assert chat
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "run" / "adapter")
    seen = [tokenizer(f" {answer.strip()}", add_special_tokens=False)["input_ids"] for answer in (raw, chat)]
    both = [token for token in seen[0] if token in seen[1]]
    stop = both[0] if both else seen[1][0]
    monkeypatch.setattr(prompts, "_template_stop", lambda _tokenizer: stop)
    raw_again, chat_again = answers("after", text, turn)
    assert raw_again == raw
    assert len(chat_again) < len(chat)
