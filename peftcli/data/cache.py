"""Encoded sources on disk, found by the content of everything that they depend on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from peftcli.data.config import SourceConfig
from peftcli.data.encode.base import EncodeSettings
from peftcli.data.encode.encoder import RowEncoder
from peftcli.data.encode.source import Progress, SourceReader, encode_source
from peftcli.data.faults import FaultLog
from peftcli.data.source_data import SourceData
from peftcli.data.sources import RowSource
from peftcli.data.tokens import TokenizerFacts


def cached_source(
    source: RowSource,
    config: SourceConfig,
    *,
    format: str,
    columns: Mapping[str, str],
    tokenizer: TokenizerFacts,
    settings: EncodeSettings,
    encoder: Callable[[], RowEncoder],
    cache_dir: Path | None,
    faults: FaultLog,
    progress: Progress | None,
) -> tuple[SourceData, bool]:
    """The encoded source, and whether it came from the cache."""
    inputs = source.facts()
    reader = SourceReader(source, config, format, columns, list(tokenizer.specials))
    return encode_source(source, reader, encoder(), inputs, faults, progress), False
