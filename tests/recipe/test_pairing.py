"""`peft validate` refuses a method on a base that it cannot work on, where the base's config.json is at hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from peftcli.adapters.compatibility import YES, family_facts, works_with
from peftcli.adapters.registry import own_method_names
from peftcli.errors import AdapterError
from peftcli.recipe import check_pairing, load_recipe

REFUSED = [
    (method, family) for method in own_method_names() for family, answer in works_with(method).items() if answer != YES
]
RECIPE = "model: {base}\ndata: builtin:support\nmethod: {method}\n"


def pair(tmp_path: Path, base: str, method: str) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE.format(base=base, method=method))
    check_pairing(load_recipe(tmp_path / "r.yaml"))


def write_config(tmp_path: Path, family: str) -> None:
    facts = family_facts()[family]
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps({"model_type": facts["model_type"], **facts["biases"]}))


@pytest.mark.parametrize(("method", "family"), REFUSED)
def test_a_pair_outside_the_table_is_refused_with_place_and_reason(tmp_path: Path, method: str, family: str) -> None:
    write_config(tmp_path, family)
    with pytest.raises(AdapterError) as caught:
        pair(tmp_path, "./base", method)
    shown = caught.value.render()
    assert works_with(method)[family] in shown
    assert "r.yaml:3:9" in shown


def test_pairs_in_the_table_pass(tmp_path: Path) -> None:
    write_config(tmp_path, "gpt2")
    for method in own_method_names():
        if works_with(method)["gpt2"] == YES:
            pair(tmp_path, "./base", method)


def test_nothing_is_said_of_a_base_that_is_not_here_or_has_other_biases(tmp_path: Path) -> None:
    pair(tmp_path, "./base", "bitfit")
    pair(tmp_path, "someone/not-in-the-cache", "bitfit")
    write_config(tmp_path, "llama")
    config = tmp_path / "base" / "config.json"
    config.write_text(json.dumps({"model_type": "llama", "attention_bias": True}))
    pair(tmp_path, "./base", "bitfit")


def test_a_base_in_the_cache_of_the_hub_counts_as_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "cache" / "models--someone--base" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps({"model_type": "t5"}))
    refs = tmp_path / "cache" / "models--someone--base" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(AdapterError, match="bitfit"):
        pair(tmp_path, "someone/base", "bitfit")
