"""What a loss asks of the rows of a split as a whole."""

from __future__ import annotations

import numpy as np

from peftcli.data.store import TokenStore
from peftcli.data.truncation import read_lengths
from peftcli.errors import DataError
from peftcli.tasks.preference_config import UNPAIRED, PreferenceConfig
from peftcli.tasks.preferences.batching import ALTERNATIVES, one_sided, with_others


def arranged(store: TokenStore, settings: PreferenceConfig) -> TokenStore:
    """The rows as the loss reads them. Raises `DataError` for rows that it cannot learn from."""
    lacking = one_sided(store)
    if len(lacking) and not settings.takes_verdicts:
        fix = f"set `preference.loss: {_verdict_losses()}`"
        raise _no_pair(store, lacking, f"`loss: {settings.loss}` compares two", fix)
    if not settings.needs_drift:
        return store
    if len(store) < 2:
        raise DataError(
            f"`loss: {settings.loss}` measures the model on answers to other prompts, and there is one row only",
            fix="more rows",
        )
    return with_others(store, int(read_lengths(store.columns, store.index, ALTERNATIVES).max()))


def require_pairs(store: TokenStore, what: str) -> None:
    """Raises `DataError` for rows of one answer. `what`: who needs two, as the middle of a sentence."""
    lacking = one_sided(store)
    if len(lacking):
        raise _no_pair(store, lacking, what, "write both answers: chosen and rejected")


def _verdict_losses() -> str:
    return " or ".join(sorted(UNPAIRED, reverse=True))


def _no_pair(store: TokenStore, lacking: np.ndarray, what: str, fix: str) -> DataError:
    first = store.origin(int(lacking[0]))
    more = f" and {len(lacking) - 1:,} more" if len(lacking) > 1 else ""
    return DataError(
        f"rows have one answer with a verdict, and {what}", where=f"{first.file}:{first.line}{more}", fix=fix
    )
