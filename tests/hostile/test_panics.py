"""What a library gives up with may be no `Exception`: it ends in one clear line all the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from peftcli.cli.entry import run as peft


class _GivenUp(BaseException):
    pass


def _from(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    # the command first: a module that is imported while `show` is patched would keep the patched one for good
    monkeypatch.setattr("peftcli.cli.commands.methods.show", fails)
    monkeypatch.setattr("peftcli.cli.output.show", fails)


def test_a_panic_is_told_as_the_library_s(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(x+x+)+y"), "isolated")
    with pytest.raises(BaseException) as raised:  # noqa: PT011 - the library's class has no name to import
        tokenizer.encode("x" * 2000)
    assert not isinstance(raised.value, Exception)
    capsys.readouterr()
    _from(raised.value, monkeypatch)
    assert peft(["methods"]) == 4
    said = capsys.readouterr().err
    assert said.startswith("error: a library failed: "), said
    assert len(said.splitlines()) <= 5


@pytest.mark.parametrize("as_json", [False, True])
def test_any_other_is_a_bug_in_one_line(
    as_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _from(_GivenUp("no checkpoint\x1b"), monkeypatch)
    assert peft(["methods", *(["--json"] if as_json else [])]) == 1
    out, err = capsys.readouterr()
    said = out if as_json else err
    assert "_GivenUp" in said
    assert "Traceback" not in out + err
    assert "\x1b" not in out + err
    log = Path(json.loads(out)["error"]["log"] if as_json else err.splitlines()[1].removeprefix("  at "))
    assert "_GivenUp" in log.read_text()
    log.unlink()
