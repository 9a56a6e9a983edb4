from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from peftcli.evaluation.config import EvaluationConfig, GenerationConfig


def test_metric_names_are_resolved_and_checked() -> None:
    assert EvaluationConfig(metrics=["exact-match", "loss"]).metrics == ["exact_match", "loss"]
    with pytest.raises(ValidationError, match="did you mean `perplexity`"):
        EvaluationConfig(metrics=["perplexty"])
    with pytest.raises(ValidationError, match="named twice: exact_match"):
        EvaluationConfig(metrics=["exact_match", "exact-match"])


@pytest.mark.parametrize(
    "wrong", [{"every": 0}, {"batch_size": 0}, {"rows": 0}, {"metrics": []}, {"samples": -1}, {"every": True}, {"x": 1}]
)
def test_wrong_values_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        EvaluationConfig(**wrong)


@pytest.mark.parametrize("wrong", [{"temperature": 0}, {"top_p": 0.0}, {"top_p": 1.1}, {"max_new_tokens": 0}])
def test_wrong_generation_values_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        GenerationConfig(**wrong)


def test_settings_without_effect_are_told() -> None:
    assert GenerationConfig(temperature=0.7).idle_settings() == [
        "generation.temperature has no effect without `do_sample: true`"
    ]
    assert GenerationConfig(temperature=0.7, do_sample=True).idle_settings() == []
    assert GenerationConfig().idle_settings() == []


def test_configuration_and_names_cost_no_heavy_import() -> None:
    code = (
        "import sys; import peftcli.evaluation.config, peftcli.evaluation.registry as r; "
        "peftcli.evaluation.config.EvaluationConfig(metrics=['bleu']); r.metric_names(); "
        "heavy = {'torch', 'transformers', 'numpy'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
