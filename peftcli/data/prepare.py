"""The data of a run, from the recipe's `data` section to rows of tokens with their loss weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from peftcli import files
from peftcli.data.assemble import SplitData, assemble, plan_splits
from peftcli.data.cache import TokenCache, content_key
from peftcli.data.config import DataConfig
from peftcli.data.doctor.base import Finding, Review, Tallies, trained_on
from peftcli.data.doctor.run import findings_of, grave_severities, raise_failures, review
from peftcli.data.encode.base import Encoding
from peftcli.data.encode.language import LANGUAGE
from peftcli.data.encode.source import Progress
from peftcli.data.facts import DataFacts
from peftcli.data.load_source import SourceLoader
from peftcli.data.order import BatchOrder
from peftcli.data.source_data import SourceData
from peftcli.data.store import TokenStore
from peftcli.data.stream import RowStream, stream_heads
from peftcli.data.stream_order import CheckRows, StreamOrder
from peftcli.data.tokens import TokenizerFacts
from peftcli.errors import RecipeError


@dataclass(frozen=True)
class PreparedData:
    """What training gets, and what is known about it. `open_stream` (batch size -> stream): with `data.streaming`, where
    `train` holds the first rows of each source only, to plan with and to look at."""

    train: TokenStore
    validation: TokenStore | None
    facts: DataFacts
    findings: list[Finding]
    open_stream: Callable[[int], RowStream] | None = None
    warnings: tuple[str, ...] = ()
    """What went another way than it should, and is no matter of the rows."""

    def order(
        self, batch_size: int, seed: int, *, max_steps: int | None = None, check: CheckRows | None = None
    ) -> BatchOrder | StreamOrder:
        """The order of batches. `check`: meets the rows that a stream brings later; those of now are there to be checked.

        `RecipeError` for a stream without `max_steps`, since it has no end.
        """
        if self.open_stream is None:
            return BatchOrder(self.train.lengths, batch_size, seed)
        if max_steps is None:
            raise RecipeError("data.streaming needs training.max_steps: a stream has no end", fix="say how many steps")
        return StreamOrder(self.open_stream(batch_size), batch_size=batch_size, steps=max_steps, check=check)


def prepare(
    config: DataConfig,
    *,
    tokenizer: Any,
    folder: Path,
    seed: int,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
    stop_on_failures: bool = True,
    context: int | None = None,
    encoding: Encoding = LANGUAGE,
) -> PreparedData:
    """Reads, checks, encodes, splits, cuts and mixes the sources of a recipe.

    `tokenizer`: a transformers fast tokenizer with the chat template that counts. `folder`: where relative paths start.
    `cache_dir`: where encoded sources are kept and looked for; None keeps nothing. `progress(source, rows)` is called
    as rows are encoded. `stop_on_failures=False` returns findings of severity `fail` instead of raising them.
    `context`: the positions of the base, more than which no advice names. `encoding`: what the task makes of a row.

    Raises `DataError` (unusable rows with file and line, a failed check), `ModelError` (conversations without a chat
    template, a template that fails), `HubError`, `RecipeError` (columns or formats that cannot be).
    """
    began = time.perf_counter()
    facts = TokenizerFacts.of(tokenizer)
    cache = None if cache_dir is None else TokenCache(cache_dir)
    loader = SourceLoader(config, facts, folder, cache, progress, encoding)
    train_sources = stream_heads(config) if config.streaming else config.train_sources
    loaded = [loader.load(source) for source in (*train_sources, *config.validation_sources)]
    # all sources first, then all their faults in one error
    loader.faults.raise_any()
    parts = [part for part in loaded if part is not None]
    train, validation = parts[: len(train_sources)], parts[len(train_sources) :]
    splits = [
        assemble(plan, config, seed, facts.bos_id, context, encoding.keep, encoding.alternatives, encoding.apart)
        for plan in plan_splits(config, train, validation, seed, by_class=encoding.by_class)
    ]
    held_out = splits[1] if len(splits) > 1 else None
    # by identity: a source that is named twice is read and reviewed once
    sources = list({id(part.data): part.data for part in (*train, *validation)}.values())
    compared = Review(splits[0].rows, held_out.rows if held_out else None)
    findings = _findings(config, sources, splits, compared, cache)
    # findings before emptiness: a check says better why no row is left than its count
    if stop_on_failures:
        raise_failures(findings)
    for split in splits:
        split.raise_if_empty()
    known = DataFacts(
        train=splits[0].facts,
        validation=held_out.facts if held_out else None,
        **_source_facts(sources),
        tokenizer_sha256=facts.sha256,
        template_sha256=facts.template_sha256,
        max_length=config.max_length,
        seconds=time.perf_counter() - began,
        cached=loader.cached,
        findings=_counts(findings),
        streaming=config.streaming,
        validation_trained_on=len(trained_on(compared)),
    )
    open_stream = partial(RowStream, config, facts, folder, seed) if config.streaming else None
    warnings = (cache.warning,) if cache and cache.warning else ()
    return PreparedData(splits[0].store, held_out.store if held_out else None, known, findings, open_stream, warnings)


def _counts(findings: Sequence[Finding]) -> dict[str, int]:
    return {severity: sum(each.severity == severity for each in findings) for severity in ("fail", "warn")}


def _source_facts(sources: Sequence[SourceData]) -> dict[str, Any]:
    # of all rows, also those of no split: a token beyond the base's table fails before training
    highest = (int(data.columns.tokens.max()) for data in sources if len(data.columns.tokens))
    return {"sources": len(sources), "max_token_id": max(highest, default=-1)}


def _findings(
    config: DataConfig,
    sources: Sequence[SourceData],
    splits: Sequence[SplitData],
    compared: Review,
    cache: TokenCache | None,
) -> list[Finding]:
    tallies = [*(data.tallies for data in sources), *(split.tallies for split in splits)]
    severities = grave_severities(compared) | config.checks
    return findings_of([*tallies, _review(config, compared, cache)], severities)


def _review(config: DataConfig, data: Review, cache: TokenCache | None) -> Tallies:
    """What the checks that compare rows see; remembered, since on many rows they take longer than all the rest."""
    if cache is None:
        return review(data, config.checks)
    off = sorted(name for name, severity in config.checks.items() if severity == "off")
    rows = [[part.tobytes() for part in (each.key, each.line, each.file)] for each in data.splits]
    key = content_key(
        [[files.sha256_bytes(part) for part in parts] for parts in rows],
        [list(each.files) for each in data.splits],
        off,
    )
    found = cache.load_review(key)
    if found is None:
        found = review(data, config.checks)
        cache.save_review(key, found)
    return found
