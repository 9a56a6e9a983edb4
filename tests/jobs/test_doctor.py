"""`peft doctor`: every problem of a machine with its fix."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from peftcli.jobs import doctor


def checks() -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in doctor.examine()["checks"]}


def test_what_is_needed_is_here() -> None:
    found = checks()
    assert {"torch", "transformers", "accelerate", "datasets", "safetensors"} <= set(found)
    assert all(found[name]["severity"] == "ok" for name in ("torch", "transformers", "memory"))
    facts = doctor.examine()["environment"]
    assert facts["torch"] == metadata.version("torch")
    assert facts["threads"] >= 1


def test_a_missing_package_fails_with_the_command_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    version = metadata.version

    def without(name: str) -> str:
        if name == "safetensors":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(doctor.metadata, "version", without)
    found = checks()["safetensors"]
    assert found["severity"] == "fail"
    assert found["fix"].startswith("pip install 'safetensors")


def test_a_release_outside_of_the_bounds_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    version = metadata.version
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "99.0" if name == "accelerate" else version(name))
    found = checks()["accelerate"]
    assert found["severity"] == "fail"
    assert "99.0 is not" in found["message"]


def test_an_optional_package_is_a_note_that_says_what_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.metadata, "version", none)
    found = checks()
    for name, purpose in doctor.OPTIONAL.items():
        assert (found[name]["severity"], purpose in found[name]["message"]) == ("note", True)


def test_a_full_disk_is_warned_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    usage = doctor.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage._replace(free=1 << 20))
    found = checks()["disk"]
    assert found["severity"] in ("warn", "fail")
    assert found["fix"]
