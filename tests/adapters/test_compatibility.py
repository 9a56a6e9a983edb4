"""The compatibility table: complete, current, readable without torch, and said by `peft methods`.

That each entry is right is held by the contract suite, which runs what the table says yes to and compares the reasons:
two families by default, all of them in `make test-all`.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from peftcli.adapters.compatibility import YES, families, refusal, table, works_with
from peftcli.adapters.registry import method_names
from peftcli.recipe.explaining import method_text, methods_document, methods_text
from peftcli.testing import FAMILIES
from peftcli.testing.compatibility import family_facts, verdict
from peftcli.testing.sections import SECTIONS

REFRESH = "refresh it: python -m peftcli.testing.compatibility"


def test_the_table_covers_every_method_and_family() -> None:
    assert set(families()) == set(FAMILIES), REFRESH
    assert set(table()["methods"]) == set(method_names()), REFRESH
    assert all(set(works_with(name)) == set(FAMILIES) for name in method_names()), REFRESH
    assert all(name in SECTIONS and SECTIONS[name]["type"] == name for name in method_names())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_facts_of_families_are_current(family: str) -> None:
    assert table()["families"][family] == family_facts(family), REFRESH


@pytest.mark.parametrize(("method", "family"), [("ln_tuning", "bert"), ("bitfit", "llama"), ("adaption_prompt", "t5")])
def test_a_sample_is_current(method: str, family: str) -> None:
    assert works_with(method)[family] == verdict(method, family), REFRESH


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
