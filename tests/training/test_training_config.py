from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from peftcli.training.config import CheckpointConfig, TrainingConfig, WSDConfig
from peftcli.training.optimizer_config import MuonConfig


def test_short_and_long_forms_agree() -> None:
    short = TrainingConfig.model_validate({"optimizer": "muon", "scheduler": "wsd"})
    assert short.optimizer == MuonConfig()
    assert short.scheduler == WSDConfig()
    assert TrainingConfig.model_validate({"optimizer": {"type": "muon"}, "scheduler": {"type": "wsd"}}) == short
    assert TrainingConfig.model_validate({"optimizer": "paged-adamw-8bit"}).optimizer.type == "paged_adamw_8bit"


def test_the_dump_validates_to_the_same() -> None:
    config = TrainingConfig.model_validate({"max_steps": 80, "optimizer": {"type": "adamw", "betas": [0.9, 0.95]}})
    assert TrainingConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("given", "per_epoch", "steps"),
    [
        ({}, 10, 30),
        ({"epochs": 2}, 10, 20),
        ({"epochs": 0.25}, 10, 3),
        ({"epochs": 0.01}, 10, 1),
        ({"max_steps": 80}, 10, 80),
        ({"max_steps": 8, "epochs": 3}, 10, 8),
        ({"max_steps": 80, "epochs": 3}, 10, 30),
    ],
)
def test_steps(given: dict[str, float], per_epoch: int, steps: int) -> None:
    assert TrainingConfig.model_validate(given).num_steps(per_epoch) == steps


def test_warmup() -> None:
    assert TrainingConfig().num_warmup_steps(1000) == 30
    assert TrainingConfig(warmup_steps=10).num_warmup_steps(1000) == 10
    assert TrainingConfig(warmup_ratio=0.0).num_warmup_steps(1000) == 0


@pytest.mark.parametrize(
    ("given", "key", "words"),
    [
        ({"kernels": ["x"]}, "kernels", "no kernel 'x'"),
        ({"kernels": []}, "kernels", "names no kernel"),
        ({"kernels": ["low_rank", "low_rank"]}, "kernels", "twice"),
        ({"processes": 0}, "processes", "greater than or equal to 1"),
        ({"micro_batch_size": 32}, "micro_batch_size", "larger than batch_size 16"),
        ({"warmup_ratio": 0.1, "warmup_steps": 3}, "warmup_steps", "give one of them"),
        ({"optimizer": "schedule_free"}, "scheduler", "scheduler: constant"),
        ({"optimizer": "adam"}, "optimizer", "'adamw'"),
        ({"optimizer": {"type": "adamw", "momentum": 0.9}}, "optimizer", "not permitted"),
        ({"optimizer": {"type": "sgd", "nesterov": True}}, "optimizer", "momentum above 0"),
        ({"learning_rate": 0}, "learning_rate", "greater than 0"),
        ({"learning_rate": float("nan")}, "learning_rate", ""),
        ({"max_steps": True}, "max_steps", "integer"),
        ({"epochs": "3"}, "epochs", "number"),
        ({"gradient_checkpointing": 0}, "gradient_checkpointing", ""),
        ({"on_nonfinite": "ignore"}, "on_nonfinite", "'stop'"),
        ({"precision": "int8"}, "precision", "'bf16'"),
        ({"lr": 1e-4}, "lr", "not permitted"),
    ],
)
def test_wrong_values(given: dict[str, object], key: str, words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TrainingConfig.model_validate(given)
    assert caught.value.errors()[0]["loc"][0] == key
    assert words in str(caught.value)


def test_checkpoint_section() -> None:
    assert CheckpointConfig() == CheckpointConfig(every=100, keep=2, best="eval_loss")
    with pytest.raises(ValidationError):
        CheckpointConfig(keep=0)


def test_every_field_is_documented() -> None:
    for name, field in {**TrainingConfig.model_fields, **CheckpointConfig.model_fields}.items():
        assert field.description, name


def test_import_without_torch() -> None:
    heavy = "('torch', 'numpy', 'transformers')"
    code = f"import sys, peftcli.training.config; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
