"""New tokens of a run: where they come from, and that the method trains their rows."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedTokenizerBase

from peftcli.adapters.base import FILE_PREFIX
from peftcli.adapters.config import HEADS_FIELD, MethodConfig
from peftcli.adapters.starting import StartAdapter
from peftcli.adapters.surgery import build, detach
from peftcli.adapters.targets import names_path
from peftcli.errors import RecipeError
from peftcli.models.added_tokens import AddedTokens, added_tokens, extend_tokenizer
from peftcli.models.source import BaseSource
from peftcli.models.structure import embeddings_are_tied, input_embedding, output_embedding
from peftcli.models.tokenizer import load_tokenizer
from peftcli.recipe import LoadedRecipe

KEY = "model.add_tokens"


def new_tokens(
    loaded: LoadedRecipe, tokenizer: PreTrainedTokenizerBase, source: BaseSource, start: StartAdapter | None
) -> AddedTokens | None:
    """The tokens of a run that its base lacks: those of the recipe, which `tokenizer` gets, or those that the adapter
    which training goes on from has beside it. None where there are none."""
    wanted = loaded.recipe.model.add_tokens
    if start is None:
        if wanted:
            extend_tokenizer(tokenizer, wanted, where=loaded.origin(KEY))
        return added_tokens(load_tokenizer(source), tokenizer, wanted) if wanted else None
    vocabulary = tokenizer.get_vocab()
    if lacking := [token for token in wanted if token not in vocabulary]:
        raise RecipeError(
            f"`{lacking[0]}` is none of the tokens of the adapter of `model.init_adapter`",
            where=loaded.origin(KEY),
            fix="leave it out, or merge the adapter first and add the token to the merged model",
        )
    return None if start.tokenizer is None else added_tokens(load_tokenizer(source), tokenizer, start.added_tokens)


def trained_with_tokens(method: MethodConfig, model: nn.Module, added: AddedTokens) -> MethodConfig:
    """The method that trains the rows of new tokens: by itself, in whole tables that it names, or row by row.

    `model`: on the meta device, with rows for them. Raises `RecipeError` for a method that cannot.
    """
    paths = {id(module): path for path, module in model.named_modules()}
    tables = [module for module in (input_embedding(model), output_embedding(model)) if module is not None]
    named = [paths[id(table)] for table in tables]
    tied = embeddings_are_tied(model)
    wanted = getattr(method, HEADS_FIELD, None) or []
    whole = [path for path in named if any(names_path(name, path) for name in wanted)]
    if tied and whole and len(whole) < len(named) and not method.keeps_ties():
        raise RecipeError(
            f"`method.{HEADS_FIELD}` names one of two tied tables, {whole[0]}: the other would not learn the new tokens",
            where=f"method.{HEADS_FIELD}",
            fix=(f"add method.{method.tying_field}: true, or " if method.tying_field else "name both, or ")
            + "leave it out: where the method can, the rows of the new tokens alone are then trained",
        )
    rest = [path for path in named if path not in whole and not (tied and (whole or path != named[0]))]
    if not rest:
        return method
    if method.can_train_tokens():
        return method.with_tokens({path: list(added.ids) for path in rest}, alone=rest == named[:1])
    if not _trains(method, model, rest):
        raise RecipeError(
            f"{method.name} does not train the rows of new tokens in {', '.join(rest)}",
            where=KEY,
            fix=f"use lora, or name the tables under method.{HEADS_FIELD} where the method has it",
        )
    return method


def _trains(method: MethodConfig, model: nn.Module, paths: list[str]) -> bool:
    adapter = build(model, method)
    try:
        keys = {entry.key for entry in adapter.entries() if entry.trainable}
    finally:
        detach(model)
    return all(f"{FILE_PREFIX}{path}.weight" in keys for path in paths)
