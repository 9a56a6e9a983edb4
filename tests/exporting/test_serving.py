"""The command for a server of adapters: what it names, and what it refuses with the reason."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from export_bases import make_adapter

from peftcli.cli.entry import run as peft
from peftcli.errors import AdapterError, RecipeError
from peftcli.exporting.serving import serve_command
from peftcli.models.builtin import builtin_base


def adapter(folder: Path, **section: Any) -> Path:
    return make_adapter("builtin:tiny", folder, {"type": "lora", "r": 4, **section})


def test_two_adapters_of_one_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = adapter(tmp_path / "one"), adapter(tmp_path / "with space", r=20)
    command = serve_command([one, other])
    assert command.words == (
        "vllm", "serve", str(builtin_base("tiny")), "--enable-lora", "--max-loras", "2", "--max-lora-rank", "32", "--port",
        "8000", "--lora-modules", f"one={one}", f"with space={other}",
    )  # fmt: skip
    assert peft(["serve", str(one), str(other), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert tuple(shlex.split(document["command"])) == command.words
    assert document["adapters"] == {"one": str(one), "with space": str(other)}


def test_what_the_template_is(tmp_path: Path) -> None:
    one, other = adapter(tmp_path / "one"), adapter(tmp_path / "other")
    for folder in (one, other):
        (folder / "chat_template.jinja").write_text("{{ messages }}")
    words = serve_command([one, other]).words
    assert words[words.index("--chat-template") + 1] == str(one / "chat_template.jinja")
    (other / "chat_template.jinja").write_text("{{ messages[0] }}")
    command = serve_command([one, other])
    assert "--chat-template" not in command.words
    assert "different chat templates" in command.notes[0]


def test_what_cannot_be_served_is_said_of_each(tmp_path: Path) -> None:
    fine = adapter(tmp_path / "fine")
    dora = adapter(tmp_path / "dora", use_dora=True)
    prompt = make_adapter("builtin:tiny", tmp_path / "prompt", {"type": "prompt_tuning", "num_virtual_tokens": 2})
    with pytest.raises(AdapterError) as raised:
        serve_command([fine, dora, prompt])
    said = raised.value.render()
    assert "DoRA" in said
    assert "its method is prompt_tuning" in said
    assert "peft convert ADAPTER --to lora" in said
    assert str(fine) not in said


def test_names_and_bases_must_agree(tmp_path: Path) -> None:
    one = adapter(tmp_path / "a" / "mine")
    other = adapter(tmp_path / "b" / "mine")
    with pytest.raises(RecipeError, match="one name"):
        serve_command([one, other])
    document = json.loads((other / "adapter_config.json").read_text())
    (tmp_path / "c").mkdir()
    moved = other.rename(tmp_path / "c" / "moved")
    (moved / "adapter_config.json").write_text(json.dumps({**document, "base_model_name_or_path": "some/where"}))
    own = json.loads((moved / "peftcli.json").read_text())
    own["base"]["name"] = "some/where"
    (moved / "peftcli.json").write_text(json.dumps(own))
    with pytest.raises(RecipeError, match="different bases"):
        serve_command([one, moved])
