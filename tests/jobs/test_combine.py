"""`peft combine`: sums that are sums, Hugging Face PEFT's figures under its names, and refusals of what has no such form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from peftcli import adapters
from peftcli.adapters.combining import HOWS, Share, Ways, distance
from peftcli.adapters.surgery import adapter_of
from peftcli.cli.entry import run as peft_command
from peftcli.errors import AdapterError, RecipeError, StorageError
from peftcli.jobs.combine import combine_adapters
from peftcli.jobs.combine_report import combine_text
from peftcli.testing import Case, tiny_model
from peftcli.testing.case import inputs_for, logits

LORA = {"type": "lora", "r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"]}


@pytest.fixture
def work(tmp_path: Path) -> Path:
    tiny_model("llama").save_pretrained(tmp_path / "base")  # type: ignore[operator]
    return tmp_path


def adapter(work: Path, name: str, section: dict[str, Any], seed: int) -> Path:
    """An adapter folder as after training, each seed with other tensors, beside its base."""
    model = Case(section, "llama").attached(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter_of(model).trainable_parameters().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    adapters.save(model, work / name, base_name="../base")
    return work / name


def weights_after(folder: Path) -> dict[str, Tensor]:
    """The base's weights with the adapter merged in: by the layers' own merge, not by their factors."""
    model = tiny_model("llama")
    adapters.load(model, folder)
    adapters.merge(model)
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters()}


def require_weighted_sum(combined: Path, parts: list[tuple[Path, float]]) -> None:
    base = dict(tiny_model("llama").named_parameters())
    found = weights_after(combined)
    changes = [(weights_after(part), weight) for part, weight in parts]
    for name, plain in base.items():
        expected = plain + sum(weight * (after[name] - plain) for after, weight in changes)
        torch.testing.assert_close(found[name], expected, rtol=0, atol=2e-6, msg=name)


@pytest.mark.parametrize("how", ["cat", "svd"])
def test_cat_and_svd_of_full_rank_are_the_weighted_sum(work: Path, how: str) -> None:
    parts = [
        (adapter(work, "one", LORA, 1), 0.7),
        (adapter(work, "two", {**LORA, "r": 3, "use_rslora": True, "target_modules": ["q_proj", "up_proj"]}, 2), -0.4),
        (adapter(work, "three", {"type": "pissa", "r": 2, "target_modules": ["q_proj"]}, 3), 1.5),
    ]
    report = combine_adapters(
        [path for path, _ in parts],
        weights=[weight for _, weight in parts],
        how=how,
        output=work / "out",
        rank=11 if how == "svd" else None,
    )
    assert report.distance < 1e-6
    assert report.layers == 6
    require_weighted_sum(work / "out", parts)


def test_svd_at_a_smaller_rank_is_the_nearest(work: Path) -> None:
    one, two = adapter(work, "one", LORA, 1), adapter(work, "two", LORA, 2)
    report = combine_adapters([one, two], weights=[1.0, 1.0], how="svd", output=work / "out", rank=3)
    base = dict(tiny_model("llama").named_parameters())
    first, second, both = weights_after(one), weights_after(two), weights_after(work / "out")
    name = f"{report.worst_layer}.weight"
    exact = (first[name] + second[name] - 2 * base[name]).double()
    values = torch.linalg.svdvals(exact)
    # Eckart and Young: what is left out is what the values beyond the rank make up
    left_out = float(values[3:].square().sum().sqrt() / values.square().sum().sqrt())
    assert report.distance == pytest.approx(left_out, rel=1e-3)
    found = (both[name] - base[name]).double()
    assert float((found - exact).norm() / exact.norm()) == pytest.approx(left_out, rel=1e-3)


@pytest.mark.parametrize("how", sorted(HOWS))
@pytest.mark.parametrize("majority", ["total", "frequency"])
def test_the_figures_are_those_of_the_reference(work: Path, how: str, majority: str) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    one, two = adapter(work, "one", LORA, 1), adapter(work, "two", {**LORA, "lora_alpha": 3}, 2)
    model = peft.PeftModel.from_pretrained(tiny_model("llama"), one, adapter_name="one")
    model.load_adapter(two, adapter_name="two")
    torch.manual_seed(0)
    with torch.no_grad():
        model.add_weighted_adapter(
            ["one", "two"], [0.8, -0.3], "both", combination_type=how, density=0.4, majority_sign_method=majority
        )
    model.set_adapter("both")
    counted = how in ("ties", "dare_ties")
    thinned = counted or how in ("dare_linear", "magnitude_prune")
    combine_adapters(
        [one, two],
        weights=[0.8, -0.3],
        how=how,
        output=work / "out",
        density=0.4 if thinned else None,
        majority_sign=majority if counted else None,
    )
    ours = tiny_model("llama")
    adapters.load(ours, work / "out")
    inputs = inputs_for(ours)
    if how.startswith("dare"):
        # draws of another order: what is compared is how far from the base they lead
        with model.disable_adapter():
            plain = logits(model, inputs)
        theirs = float((logits(model, inputs) - plain).norm())
        assert 0.3 * theirs < float((logits(ours, inputs) - plain).norm()) < 3 * theirs
        return
    torch.testing.assert_close(logits(ours, inputs), logits(model, inputs), rtol=0, atol=2e-5)


def test_dare_draws_by_its_seed_and_keeps_the_mean(work: Path) -> None:
    one, two = adapter(work, "one", LORA, 1), adapter(work, "two", LORA, 2)
    found = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        combine_adapters([one, two], weights=[1, 1], how="dare_linear", output=work / name, density=0.5, seed=seed)
        found[name] = (work / name / "adapter_model.safetensors").read_bytes()
    assert found["a"] == found["b"]
    assert found["a"] != found["c"]
    ones = Share(torch.ones(2, 4000), torch.ones(3, 2), 1.0)
    thinned, _ = HOWS["dare_linear"]([ones], Ways(density=0.25, generator=torch.Generator().manual_seed(0)))
    assert set(thinned.unique().tolist()) == {0.0, 4.0}
    assert float(thinned.mean()) == pytest.approx(1.0, abs=0.05)


def test_ties_by_hand() -> None:
    """Entries 3 and -1: the sum of the signs is even, of the values positive; where all agree they are averaged."""
    first = Share(torch.tensor([[3.0, 2.0, 0.1]]), torch.tensor([[1.0]]), 1.0)
    second = Share(torch.tensor([[-1.0, 4.0, 0.2]]), torch.tensor([[1.0]]), 1.0)
    row, _ = HOWS["ties"]([first, second], Ways(density=0.67))
    # of three entries two are kept: the third is trimmed from both
    assert row.tolist() == [[3.0, 3.0, 0.0]]


def test_how_rough_an_approximation_is_stands_in_the_report(work: Path) -> None:
    one, two = adapter(work, "one", LORA, 1), adapter(work, "two", LORA, 2)
    report = combine_adapters([one, two], weights=[1, 1], how="linear", output=work / "out")
    assert report.distance > 0.3, "cross terms of unrelated adapters"
    assert "--how cat is the weighted sum itself" in combine_text(report)
    share = Share(torch.ones(1, 2), torch.ones(2, 1), 2.0)
    assert distance((torch.ones(1, 2), torch.ones(2, 1)), [share]) == pytest.approx(0.5)


def test_the_folder_names_its_base_says_what_it_is_made_of_and_goes_on(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = adapter(work, "one", LORA, 1), adapter(work, "two", LORA, 2)
    (one / "chat_template.jinja").write_text("{{ messages }}")
    (two / "chat_template.jinja").write_text("{{ messages }}!")
    report = combine_adapters([one, two], weights=[2, 1], how="cat", output=work / "out")
    assert "chat_template.jinja differs" in combine_text(report)
    assert (work / "out" / "chat_template.jinja").read_text() == "{{ messages }}"
    document = json.loads((work / "out" / "adapter_config.json").read_text())
    assert document["base_model_name_or_path"] == str(work / "base")
    assert (document["r"], document["lora_alpha"]) == (8, 8)
    notes = json.loads((work / "out" / "peftcli.json").read_text())["notes"]
    assert [part["weight"] for part in notes["combined"]["parts"]] == [2, 1]
    monkeypatch.chdir(work)
    assert peft_command(["combine", "out", "one", "--weights", "1,-2", "--how", "cat", "--output", "back"]) == 0
    require_weighted_sum(work / "back", [(two, 1.0)])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weights": [1.0]}, "1 weights for 2 adapters"),
        ({"weights": [1.0, float("nan")]}, "zero or not finite"),
        ({"weights": [1.0, 0.0]}, "zero or not finite"),
        ({"how": "mean"}, "no way to combine"),
        ({"density": 0.5}, "--density has no effect with --how cat"),
        ({"rank": 2, "seed": 1}, "--rank, --seed has no effect"),
        ({"how": "ties", "density": 0.0}, "is no share"),
        ({"how": "ties", "majority_sign": "most"}, "is unknown"),
    ],
)
def test_arguments_that_mean_nothing(work: Path, changed: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"weights": [1.0, 1.0], "how": "cat", "output": work / "out", **changed}
    with pytest.raises(RecipeError, match=message):
        combine_adapters([work / "one", work / "two"], **arguments)
    assert not (work / "out").exists()


def test_what_has_no_such_form_is_refused(work: Path) -> None:
    one = adapter(work, "one", LORA, 1)
    for name, section, message in (
        ("ranks", {**LORA, "r": 2}, "needs one rank"),
        ("dora", {**LORA, "use_dora": True}, "is not a low-rank pair"),
        ("ia3", {"type": "ia3", "target_modules": ["q_proj"], "feedforward_modules": []}, "is not a low-rank pair"),
        ("head", {**LORA, "modules_to_save": ["lm_head"]}, "is not a low-rank pair"),
        ("bias", {**LORA, "lora_bias": True}, "is not a low-rank pair"),
    ):
        other = adapter(work, name, section, 2)
        with pytest.raises(AdapterError, match=message):
            combine_adapters([one, other], weights=[1, 1], how="linear", output=work / "out")
    tiny_model("llama", seed=3).save_pretrained(work / "base2")  # type: ignore[operator]
    model = Case(LORA, "llama").trained()
    adapters.save(model, work / "foreign", base_name="../base2")
    with pytest.raises(AdapterError, match="different bases"):
        combine_adapters([one, work / "foreign"], weights=[1, 1], how="cat", output=work / "out")
    with pytest.raises(RecipeError, match="nothing to combine"):
        combine_adapters([one], weights=[1], how="cat", output=work / "out")
    assert not (work / "out").exists()
    (work / "out").mkdir()
    with pytest.raises(StorageError, match="already exists"):
        combine_adapters([one, one], weights=[1, 1], how="cat", output=work / "out")
