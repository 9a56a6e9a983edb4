"""A source, encoded: out of the token cache, or read and encoded and put there."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from peftcli.data.cache import TokenCache, content_key
from peftcli.data.config import DataConfig, SourceConfig
from peftcli.data.encode.base import EncodeSettings, Encoding
from peftcli.data.encode.encoder import RowEncoder
from peftcli.data.encode.language import LANGUAGE
from peftcli.data.encode.source import Progress, SourceReader, encode_source
from peftcli.data.faults import FaultLog
from peftcli.data.readers.compressed import plain_suffix
from peftcli.data.source_data import SourceData
from peftcli.data.sources import FileFacts, RowSource, resolve
from peftcli.data.tokens import TokenizerFacts

# a larger source is read through before it is encoded, so that a broken line near its end is told within seconds
READ_FIRST_BYTES = 4 << 20


@dataclass(frozen=True)
class Part:
    """A source with its section of the recipe."""

    config: SourceConfig
    data: SourceData


class SourceLoader:
    """Loads sources one by one; the tokenizer is built only when one is not in the cache."""

    def __init__(
        self,
        config: DataConfig,
        tokenizer: TokenizerFacts,
        folder: Path,
        cache: TokenCache | None,
        progress: Progress | None,
        encoding: Encoding = LANGUAGE,
    ) -> None:
        self.faults = FaultLog()
        self.cached = 0
        self._config = config
        self._tokenizer = tokenizer
        self._settings = EncodeSettings.of(config)
        self._folder = folder
        self._cache = cache
        self._progress = progress
        self._encoding = encoding
        self._encoder: RowEncoder | None = None
        self._known: dict[tuple[str, ...], SourceData] = {}

    def load(self, section: SourceConfig) -> Part | None:
        """The source's rows. What is wrong with rows goes to `faults`; then the source is not cached, or even None."""
        source = resolve(section, self._folder)
        inputs = source.facts()
        key = self._key(source, section, inputs)
        # equal bytes under two names are one entry of the cache, but two sources here
        known = (key, *source.names)
        if known not in self._known:
            data = self._load(key, source, section, inputs)
            if data is None:
                return None
            self._known[known] = data
        return Part(section, self._known[known])

    def _load(self, key: str, source: RowSource, section: SourceConfig, inputs: list[FileFacts]) -> SourceData | None:
        found = self._cache.load(key, source.names, inputs) if self._cache else None
        if found is not None:
            self.cached += 1
            return found
        before = self.faults.count
        if sum(each.bytes for each in inputs) > READ_FIRST_BYTES:
            source_reader(source, section, self._config, self._tokenizer).read_through(self.faults)
            if self.faults.count > before:
                return None
        if self._encoder is None:
            self._encoder = RowEncoder(self._tokenizer, self._settings, self._encoding)
        reader = source_reader(source, section, self._config, self._tokenizer)
        data = encode_source(source, reader, self._encoder, inputs, self.faults, key, self._progress)
        if self._cache is None or self.faults.count > before:
            return data
        self._cache.save(data)
        return self._cache.load(key, source.names, inputs) or data

    def _key(self, source: RowSource, section: SourceConfig, inputs: list[FileFacts]) -> str:
        return content_key(
            [each.sha256 for each in inputs],
            [plain_suffix(Path(name)) for name in source.names],
            self._tokenizer.sha256,
            self._tokenizer.template_sha256,
            asdict(self._settings),
            self._encoding.task,
            section.format or self._config.format,
            dict(self._config.columns if section.columns is None else section.columns),
            section.rows,
            # what is read the same way either way keeps its place in the cache
            *(["untyped"] if self._tokenizer.untyped else []),
        )


def source_reader(
    source: RowSource, section: SourceConfig, config: DataConfig, tokenizer: TokenizerFacts
) -> SourceReader:
    """The reader of a source under the recipe's format and columns."""
    columns = config.columns if section.columns is None else section.columns
    return SourceReader(source, section, section.format or config.format, columns, list(tokenizer.specials))
