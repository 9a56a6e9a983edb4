"""The compatibility table: complete, current, readable without torch, and said by `peft methods`.

That each entry is right is held by the contract suite, which runs what the table says yes to and compares the reasons:
two families by default, all of them in `make test-all`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from peftcli.adapters.compatibility import (
    YES,
    families,
    family_facts,
    refusal,
    row_path,
    storage_refusal,
    storages_of,
    works_with,
)
from peftcli.adapters.registry import method_names
from peftcli.models.storage_names import PACKAGES
from peftcli.recipe.telling_methods import method_text, methods_document, methods_text
from peftcli.testing import FAMILIES, compatibility
from peftcli.testing.compatibility import facts_of, verdict

REFRESH = "refresh it: python -m peftcli.testing.compatibility"


def test_the_table_covers_every_method_and_family() -> None:
    assert set(families()) == set(FAMILIES), REFRESH
    assert all(set(works_with(name)) == set(FAMILIES) for name in method_names()), REFRESH


def test_the_table_of_quantized_bases_covers_every_method() -> None:
    refresh = "refresh it: python -m peftcli.testing.storages, with bitsandbytes installed"
    assert all(set(storages_of(name)) == set(PACKAGES) for name in method_names()), refresh
    failing = [name for name in method_names() for found in storages_of(name).values() if found.startswith("fails")]
    assert not failing
    assert storage_refusal("lora", "nf4") is None
    assert "cannot be trained themselves" in str(storage_refusal("full", "int8"))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_facts_of_families_are_current(family: str) -> None:
    assert family_facts()[family] == facts_of(family), REFRESH


@pytest.mark.parametrize(("method", "family"), [("ln_tuning", "bert"), ("bitfit", "llama"), ("adaption_prompt", "t5")])
def test_a_sample_is_current(method: str, family: str) -> None:
    assert works_with(method)[family] == verdict(method, family), REFRESH


def test_one_method_is_refreshed_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def path_of(name: str) -> Path:
        return tmp_path / f"{name}.json"

    monkeypatch.setattr(compatibility, "FAMILIES_PATH", path_of("families"))
    monkeypatch.setattr(compatibility, "row_path", path_of)
    monkeypatch.setattr(compatibility, "FAMILIES", ("t5",))
    assert compatibility.main(["adaption-prompt"]) == 0
    assert {path.stem for path in tmp_path.iterdir()} == {"families", "adaption_prompt"}
    assert json.loads(path_of("adaption_prompt").read_text()) == {"t5": works_with("adaption_prompt")["t5"]}


def test_a_name_that_is_no_method_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    before = row_path("lora").stat().st_mtime_ns
    assert compatibility.main(["lora", "lorra"]) == 2
    assert "no method lorra" in capsys.readouterr().err
    assert row_path("lora").stat().st_mtime_ns == before


def test_no_method_fails_a_check() -> None:
    failing = {
        name: found for name in method_names() for found in works_with(name).values() if found.startswith("fails")
    }
    assert not failing


def test_refusal() -> None:
    reason = refusal("bitfit", "llama")
    assert reason is not None
    assert "bias" in reason
    assert refusal("lora", "llama") is None
    assert refusal("bitfit", "gpt2") is None
    # a Llama with biases is another case, and a family that was never tried is not judged
    assert refusal("bitfit", "llama", {"attention_bias": True}) is None
    assert refusal("bitfit", "llama", {"attention_bias": False, "mlp_bias": False}) == reason
    assert refusal("bitfit", "mamba") is None
    assert refusal("somebody_elses", "llama") is None


def test_methods_says_it() -> None:
    document = methods_document()["methods"]
    assert document["lora"]["works_with"]["llama"] == YES
    assert "bitfit not on" in methods_text()
    text = method_text("bitfit")
    assert "works with: " in text
    assert "not with llama" in text


def test_it_is_read_without_torch() -> None:
    code = (
        "import sys; from peftcli.adapters.compatibility import refusal; "
        "assert refusal('bitfit', 'llama'); assert 'torch' not in sys.modules; assert 'numpy' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
