"""Every method that Hugging Face PEFT has: trained here, exported, and loaded there without a word, with our logits."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import peftcli
from peftcli import adapters
from peftcli.adapters.registry import config_class, own_method_names
from peftcli.exporting.export import export_adapter
from peftcli.models.load import load_model
from peftcli.models.source import resolve_base

peft = pytest.importorskip("peft", reason="peft is not installed (pip install peft==0.21.2)")
METHODS = [name for name in own_method_names() if config_class(name).in_peft]
VARIANTS = [(short, {}) for name in METHODS for short in config_class(name).short_names]
MORE: list[tuple[str, dict[str, Any]]] = [
    ("lora", {"r": 4, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 3}, "use_rslora": True}),
    ("lora", {"r": 4, "bias": "all", "target_modules": ["q_proj", "v_proj"]}),
    ("lora", {"r": 4, "trainable_token_indices": [5, 9]}),
    ("prefix_tuning", {"prefix_projection": True}),
]
# LoftQ starts from what quantizing a base lost: the bases here are not quantized
TABLE = [(name, fields) for name, fields in [*((name, {}) for name in METHODS), *VARIANTS, *MORE] if name != "loftq"]
WITHIN = 1e-5
"""Of the largest logit: sums of float32 in another order differ by that much."""
THEIR_OWN = {
    # it says so of every AdaLoRA that it has trained itself: the keys name tensors, as its own code writes them
    "adalora": "rank_pattern keys did not match any targeted module",
    # of every norm but torch's own, whoever trained it
    "ln_tuning": "Unsupported layer type",
}
OF_TRANSFORMERS = "is deprecated and will be removed"
"""What the reference's own calls of the newest transformers make it say."""


def bare() -> Any:
    return load_model(resolve_base("builtin:tiny", folder=Path.cwd())).eval()


def test_the_table_is_whole() -> None:
    assert len(METHODS) >= 13
    assert {"dora", "rslora", "pissa", "olora"} <= {name for name, _ in VARIANTS}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "fields"), TABLE, ids=[f"{name}{sorted(fields)}" for name, fields in TABLE])
def test_the_reference_loads_what_was_trained(
    tmp_path: Path, name: str, fields: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    recipe = {
        "model": "builtin:tiny", "data": {"train": "builtin:support", "max_length": 128},
        "method": {"type": name, **fields}, "training": {"max_steps": 20, "batch_size": 8}, "threads": 1,
        "checkpoint": {"every": None},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    peftcli.train(tmp_path / "recipe.yaml", output=tmp_path / "run")
    report = export_adapter(tmp_path / "run", to="peft", output=tmp_path / "out")
    assert report.notes == () or all("vLLM" in note for note in report.notes)
    caplog.clear()
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.WARNING):
        warnings.simplefilter("always")
        theirs = peft.PeftModel.from_pretrained(bare(), str(tmp_path / "out")).eval()
    said = [*(str(warning.message) for warning in caught), *caplog.messages]
    known = (OF_TRANSFORMERS, THEIR_OWN.get(name, OF_TRANSFORMERS))
    assert not [text for text in said if not any(part in text for part in known)]
    ours = bare()
    adapters.load(ours, tmp_path / "run" / "adapter")
    ids = torch.stack([torch.arange(20, 60), torch.arange(300, 340)])
    with torch.no_grad():
        expected, plain, found = ours(ids).logits, bare()(ids).logits, theirs(input_ids=ids).logits
    # the reference returns logits of virtual tokens too
    assert (found[:, -ids.shape[1] :] - expected).abs().max() <= WITHIN * expected.abs().max()
    assert (plain - expected).abs().max() > 10 * WITHIN
