"""A base that another auto class loads is told for what it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers

from peftcli.errors import ModelError
from peftcli.models.skeleton import meta_model
from peftcli.models.source import resolve_base


def test_a_vision_language_model_says_what_it_is(tmp_path: Path) -> None:
    transformers.LlavaConfig().save_pretrained(tmp_path)
    with pytest.raises(ModelError) as caught:
        meta_model(resolve_base(str(tmp_path), folder=tmp_path))
    text = caught.value.render()
    assert "text with images or sound" in text
    assert "AutoModelForImageTextToText" in text
    assert "of the family llama" in text


def test_a_model_for_something_else_names_who_loads_it(tmp_path: Path) -> None:
    transformers.T5Config().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="AutoModelForSeq2SeqLM"):
        meta_model(resolve_base(str(tmp_path), folder=tmp_path))
