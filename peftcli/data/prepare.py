"""The data of a run, from the recipe's `data` section to rows of tokens with their loss weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftcli.data.assemble import Part, SplitPlan, assemble, plan_splits
from peftcli.data.cache import cached_source
from peftcli.data.config import DataConfig, SourceConfig
from peftcli.data.doctor.base import Finding
from peftcli.data.doctor.run import findings_of, raise_failures, review
from peftcli.data.encode.base import EncodeSettings
from peftcli.data.encode.encoder import RowEncoder
from peftcli.data.facts import DataFacts
from peftcli.data.faults import FaultLog
from peftcli.data.source_data import SourceData
from peftcli.data.sources import resolve
from peftcli.data.store import TokenStore
from peftcli.data.tokens import TokenizerFacts

Progress = Callable[[str, int], None]


@dataclass(frozen=True)
class PreparedData:
    """What training gets, and what is known about it."""

    train: TokenStore
    validation: TokenStore | None
    facts: DataFacts
    findings: list[Finding]


def prepare(
    config: DataConfig,
    *,
    tokenizer: Any,
    folder: Path,
    seed: int,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
    stop_on_failures: bool = True,
) -> PreparedData:
    """Reads, checks, encodes, splits, cuts and mixes the sources of a recipe.

    `tokenizer`: a transformers fast tokenizer with the chat template that counts. `folder`: where relative paths start.
    `cache_dir`: where encoded sources are kept and looked for; None keeps nothing. `progress(source, rows)` is called as
    rows are encoded. `stop_on_failures=False` returns findings of severity `fail` instead of raising, to show them.

    Raises `DataError` (unusable rows with file and line, a failed check), `ModelError` (conversations without a chat
    template, a template that fails), `HubError`, `RecipeError` (columns or formats that cannot be).
    """
    began = time.perf_counter()
    facts = TokenizerFacts.of(tokenizer)
    loader = _Loader(config, facts, folder, cache_dir, progress)
    train = [loader.load(source) for source in config.train_sources]
    validation = [loader.load(source) for source in config.validation_sources]
    loader.faults.raise_any()
    splits = plan_splits(config, train, validation, seed)
    return _prepared(config, splits, loader, seed, began, stop_on_failures)


class _Loader:
    """Loads sources one by one; the tokenizer is built only when one is not in the cache."""

    def __init__(
        self, config: DataConfig, facts: TokenizerFacts, folder: Path, cache_dir: Path | None, progress: Progress | None
    ) -> None:
        self.config = config
        self.facts = facts
        self.faults = FaultLog()
        self.cached = 0
        self._settings = EncodeSettings(config.append_eos, config.train_on)
        self._folder = folder
        self._cache_dir = cache_dir
        self._progress = progress
        self._encoder: RowEncoder | None = None

    def encoder(self) -> RowEncoder:
        if self._encoder is None:
            self._encoder = RowEncoder(self.facts, self._settings)
        return self._encoder

    def load(self, source: SourceConfig) -> Part:
        data, found = cached_source(
            resolve(source, self._folder),
            source,
            format=source.format or self.config.format,
            columns=self.config.columns if source.columns is None else source.columns,
            tokenizer=self.facts,
            settings=self._settings,
            encoder=self.encoder,
            cache_dir=self._cache_dir,
            faults=self.faults,
            progress=self._progress,
        )
        self.cached += found
        return Part(source, data)


def _prepared(
    config: DataConfig, splits: Sequence[SplitPlan], loader: _Loader, seed: int, began: float, stop_on_failures: bool
) -> PreparedData:
    stores = [assemble(plan, config, seed) for plan in splits]
    sources = _distinct([part.data for plan in splits for part in plan.parts])
    tallies = [data.tallies for data in sources]
    tallies += [store.tallies for store in stores]
    tallies.append(review(_review_of(stores), config.checks))
    findings = findings_of(tallies, config.checks)
    if stop_on_failures:
        raise_failures(findings)
    for store in stores:
        store.raise_if_empty()
    facts = DataFacts(
        train=stores[0].facts,
        validation=stores[1].facts if len(stores) > 1 else None,
        tokenizer_sha256=loader.facts.sha256,
        template_sha256=loader.facts.template_sha256,
        max_token_id=max((int(data.columns.tokens.max()) for data in sources if len(data.columns.tokens)), default=-1),
        max_length=config.max_length,
        seconds=time.perf_counter() - began,
        cached=loader.cached,
        sources=len(sources),
        findings={severity: sum(each.severity == severity for each in findings) for severity in ("fail", "warn")},
    )
    return PreparedData(stores[0].store, stores[1].store if len(stores) > 1 else None, facts, findings)


def _distinct(data: Sequence[SourceData]) -> list[SourceData]:
    return list({id(each): each for each in data}.values())


def _review_of(stores: Sequence[Any]) -> Any:
    from peftcli.data.doctor.base import Review

    return Review(stores[0].rows, stores[1].rows if len(stores) > 1 else None)
