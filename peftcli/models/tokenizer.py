"""Loads the tokenizer of a base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer

from peftcli.data.tokens import KWARGS, template_kwargs
from peftcli.errors import ModelError
from peftcli.models.loading_errors import loading_errors
from peftcli.models.source import (
    BUILTIN_PREFIX,
    BaseSource,
)
from peftcli.models.tokenizer_trial import require_bounded_tokenizer
from peftcli.models.view import shown_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(
    source: BaseSource,
    *,
    chat_template: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> PreTrainedTokenizerBase:
    """The tokenizer of a base; `chat_template` (Jinja text) replaces its own, and `chat_template_kwargs` are variables
    of it that go with the tokenizer, into its saved folder too.

    A tokenizer without a pad token pads with its end token: padding is masked by position, so nothing is lost.
    """
    with loading_errors(source, "the tokenizer"), shown_folder(source, weights=False) as shown:
        if (fast := shown.path / "tokenizer.json").exists() and not source.name.startswith(BUILTIN_PREFIX):
            require_bounded_tokenizer(fast, source.name)
        tokenizer = AutoTokenizer.from_pretrained(str(shown.path), trust_remote_code=False, use_fast=True)
    tokenizer.name_or_path = source.location
    if not tokenizer.is_fast:
        raise ModelError(f"{source.name} has no fast tokenizer", where=source.location, fix="it needs a tokenizer.json")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    if chat_template_kwargs:
        tokenizer.init_kwargs[KWARGS] = {**template_kwargs(tokenizer), **chat_template_kwargs}
    return tokenizer
