"""Several adapters of one base asked at once: each answers as it does alone, and the base as it does without them."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from peftcli import adapters
from peftcli.cli.entry import run as peft
from peftcli.jobs import side_by_side
from peftcli.jobs.side_by_side import SideBySide, names_of
from peftcli.models.load import load_model
from peftcli.models.source import resolve_base

SECTIONS: dict[str, Any] = {
    "lora": {"type": "lora", "r": 4},
    "prefix": {"type": "prefix_tuning", "num_virtual_tokens": 4},
    "tokens": {"type": "lora", "r": 2, "trainable_token_indices": [5, 300]},
    "whole": {"type": "lora", "r": 2, "bias": "all", "modules_to_save": ["lm_head"]},
}
PROMPTS = [{"prompt": "Finn Shaw here. My BluCon stove is broken.", "id": 7}, {"prompt": "Hello."}]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Adapters of several methods with random tensors, away from any run."""
    home = tmp_path_factory.mktemp("side")
    for name, section in SECTIONS.items():
        model = load_model(resolve_base("builtin:tiny", folder=Path.cwd()))
        adapters.attach(model, section)
        generator = torch.Generator().manual_seed(len(name))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        adapters.save(model, home / name, base_name="builtin:tiny")
    return [str(home / name) for name in SECTIONS]


@pytest.fixture
def asked(tmp_path: Path) -> str:
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    return str(tmp_path / "in.jsonl")


BRIEF = ["--set", "generation.max_new_tokens=8"]


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> Any:
    capsys.readouterr()
    assert peft([*arguments, *BRIEF, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_each_answers_as_alone_and_the_base_is_read_once(
    folders: list[str], asked: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = {
        Path(folder).name: said(["generate", folder, "--input", asked, "--base"], capsys)["answers"]
        for folder in folders
    }
    read: list[Any] = []
    load_base = side_by_side.load_base
    monkeypatch.setattr(side_by_side, "load_base", lambda *given, **more: read.append(1) or load_base(*given, **more))
    # the first again behind the others' backs: forwards and backwards
    for order in (folders, folders[::-1]):
        rows = said(["generate", *order, "--input", asked, "--base"], capsys)["answers"]
        assert [row["id"] for row in rows if "id" in row] == [7]
        for number, row in enumerate(rows):
            assert list(row["adapters"]) == [Path(folder).name for folder in order]
            for name, answers in alone.items():
                assert row["adapters"][name] == {"answer": answers[number]["answer"]}, name
                assert row["base_answer"] == answers[number]["base_answer"]
    assert len(read) == 2
    assert len({answers[0]["answer"] for answers in alone.values()}) == len(SECTIONS)


def test_nothing_stays_on_the_base(folders: list[str]) -> None:
    side = SideBySide([Path(folder) for folder in folders])
    with side.opened("lora") as opened:
        pass
    base = opened.model
    untouched = load_model(resolve_base("builtin:tiny", folder=Path.cwd()))
    for name in side.paths:
        with side.opened(name) as opened:
            assert opened.model is base
    assert dict(base.named_modules()).keys() == dict(untouched.named_modules()).keys()
    for (name, one), (other_name, other) in zip(base.state_dict().items(), untouched.state_dict().items(), strict=True):
        assert name == other_name
        assert torch.equal(one, other)
    assert base.config.to_dict() == untouched.config.to_dict()
    with pytest.raises(RuntimeError, match="on purpose"), side.opened("prefix"):
        raise RuntimeError("on purpose")
    with torch.inference_mode():
        ids = torch.arange(40, 60)[None]
        assert torch.equal(base(ids).logits, untouched(ids).logits)


def test_a_lone_prompt_is_written_label_by_label(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate", folders[0], folders[1], "--prompt", PROMPTS[0]["prompt"], "--base"]
    document = said(arguments, capsys)["answers"][0]
    assert peft([*arguments, *BRIEF]) == 0
    shown = capsys.readouterr().out
    expected = {"base": document["base_answer"]} | {name: each["answer"] for name, each in document["adapters"].items()}
    assert shown.strip() == "\n".join(f"{label + ':':<8}{text}" for label, text in expected.items()).strip()


def test_conversations_go_on_from_their_own_answers(
    folders: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def talk(arguments: list[str]) -> Any:
        monkeypatch.setattr("sys.stdin", io.StringIO("Hello, I am Cora Cole.\nMy stove is broken.\n"))
        return said(["chat", *arguments], capsys)["turns"]

    alone = {Path(folder).name: talk([folder, "--base"]) for folder in folders[:2]}
    together = talk([*folders[:2], "--base"])
    for number, turn in enumerate(together):
        assert turn["message"] == alone["lora"][number]["message"]
        assert turn["base_answer"] == alone["lora"][number]["base_answer"]
        for name, turns in alone.items():
            assert turn["adapters"][name] == {"answer": turns[number]["answer"]}
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello.\n"))
    assert peft(["chat", *folders[:2], *BRIEF]) == 0
    assert [line.partition(">")[0] for line in capsys.readouterr().out.splitlines()] == ["lora", "prefix"]


def test_what_does_not_stand_side_by_side(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(folders[0], other)
    own = json.loads((other / "peftcli.json").read_text())
    own["base"]["name"] = "some/where"
    (other / "peftcli.json").write_text(json.dumps(own))
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "some/where"}))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    for paths, code, told in (
        ([folders[0], folders[0]], 2, "is named twice"),
        ([folders[0], str(other)], 2, "different bases: lora of builtin:tiny, other of some/where"),
        ([folders[0], str(tmp_path / "model")], 2, "whole model"),
        ([folders[0], str(tmp_path / "nowhere")], 4, "no such run or adapter folder"),
    ):
        assert peft(["generate", *paths, "--prompt", "a"]) == code
        assert told in capsys.readouterr().err


def test_labels_tell_the_paths_apart(tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "run" / "adapter", tmp_path / "b" / "run", tmp_path / "c" / "base", tmp_path / "d"]
    assert list(names_of(paths)) == ["a/run", "b/run", "c/base", "d"]
