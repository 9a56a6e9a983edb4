"""Whether a base can read the rows: their positions, and tokens that stand for no text."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedTokenizerBase

from peftcli.adapters.prompt_sites import learned_positions
from peftcli.data.encode.base import Encoding
from peftcli.data.prepare import PreparedData
from peftcli.data.store import TokenStore
from peftcli.data.truncation import read_lengths
from peftcli.errors import DataError, RecipeError
from peftcli.planning.counts import Counts
from peftcli.recipe import LoadedRecipe


def require_positions(
    loaded: LoadedRecipe, skeleton: nn.Module, counts: Counts, data: PreparedData, encoding: Encoding
) -> None:
    """Positions that are learned one by one end somewhere: a longer row cannot be read."""
    limit, config = learned_positions(skeleton), loaded.recipe.data
    if limit is None:
        return
    stores = [store for store in (data.train, data.validation) if store is not None and len(store)]
    # what a stream will bring is not known, only how it is cut
    longest = config.max_length if config.streaming else max(_longest(store, encoding) for store in stores)
    added = counts.added_positions
    if longest + added > limit:
        virtual = f" and {added} virtual tokens" if added else ""
        raise RecipeError(
            f"the longest row has {longest} tokens: these{virtual} need more than the base's {limit} positions",
            where="data.max_length",
            fix=f"data.max_length: {limit - added}" if added < limit else "fewer virtual tokens",
        )


def _longest(store: TokenStore, encoding: Encoding) -> int:
    """Tokens of the longest run that the model reads at once."""
    return int(read_lengths(store.columns, store.index, encoding.alternatives, apart=encoding.apart).max())


def require_embedded(
    tokenizer: PreTrainedTokenizerBase, not_embedded: frozenset[int], store: TokenStore | None
) -> None:
    """Places for images or sound that a text model does not embed may not stand in rows of text."""
    for row in store if store is not None and not_embedded else ():
        found = not_embedded.intersection(row.input_ids.tolist())
        if found:
            raise DataError(
                f"the row holds {tokenizer.convert_ids_to_tokens(min(found))!r}, which this base does not embed",
                where=f"{row.origin.file}:{row.origin.line}",
                fix="write it another way: it stands for an image or a sound",
            )
