"""Keys of an adapter file as this model has them: what wrappers, adapter names and older releases left in them.

    base_model.model._orig_mod.model.layers.0...lora_A.weight     wrappers (torch.compile, DDP, FSDP): left out, noted
    base_model.model.model.layers.0...lora_A.default.weight       the adapter's name, as the live modules have it: left out
    base_model.model.embed_out.lora_A.weight                      modules that transformers renamed since: renamed, noted
    base_model.model.lm_head.modules_to_save.weight               second copies of what the file holds: left out

Keys that another tool made (no prefix, the prefix twice, other tensor names) are refused, with the tool's name; `peft
convert` reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from peftcli.adapters.base import FILE_PREFIX, Method
from peftcli.adapters.base_modules import named_base_modules
from peftcli.adapters.oddities import named, tell
from peftcli.errors import AdapterError
from peftcli.models.conversions import Conversions

COMPILED = "_orig_mod"
"""The name under which `torch.compile` holds what it compiles."""
WRAPPERS = frozenset({COMPILED, "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Module names that torch puts around a model or its parts."""
PARALLEL = "module"
"""The name under which data-parallel wrappers hold the whole model; elsewhere it may be a module's own name."""
LIVE_NAME = "default"
"""The adapter's name in the reference's live modules."""


@dataclass
class KeyReading:
    """What became of a file's keys."""

    names: dict[str, str] = field(default_factory=dict)
    """Key here -> key in the file."""
    turned: set[str] = field(default_factory=set)
    """Keys here whose matrices stand transposed in the file."""
    renamed: dict[str, str] = field(default_factory=dict)
    """Module path in the file -> path in this model, where transformers renamed it."""


@dataclass(frozen=True)
class _Key:
    """A key in parts: the path of a module of this model, and the name of the tensor there."""

    path: str
    tensor: tuple[str, ...]

    def text(self) -> str:
        return FILE_PREFIX + ".".join(([self.path] if self.path else []) + list(self.tensor))


def read_keys(keys: Iterable[str], model: nn.Module, owner: Method, *, converting: bool, where: str) -> KeyReading:
    """Reads the keys of a file. `owner`: the method whose file it is, which says what other tools call its tensors.

    `converting`: keys of other tools are taken too. Raises `AdapterError` for them otherwise, and for keys that mean the
    same tensor.
    """
    reader = _Reader(model, owner.other_names)
    parsed = {key: reader.read(key) for key in keys}
    if reader.foreign and not converting:
        raise AdapterError(
            f"the keys are those of another tool: {reader.foreign}",
            where=where,
            fix="`peft convert ADAPTER --to peft --output DIR` writes it in this format",
        )
    parsed = _without_adapter_name(parsed)
    reading = KeyReading(renamed=reader.renamed)
    for key, found in _without_second_copies(parsed, owner.repeated_names).items():
        text = found if isinstance(found, str) else found.text()
        if text in reading.names:
            raise AdapterError(f"`{key}` and `{reading.names[text]}` are one tensor", where=where, fix="remove one")
        reading.names[text] = key
        if key in reader.turned:
            reading.turned.add(text)
    reader.tell_all(where)
    return reading


class _Reader:
    def __init__(self, model: nn.Module, other_names: Mapping[str, str]) -> None:
        self.paths = {path for path, _ in named_base_modules(model)}
        self.own_names = {part for path in self.paths for part in path.split(".")}
        self.other_names = other_names
        self.conversions = Conversions(model)
        self.stripped: dict[str, None] = {}
        self.renamed: dict[str, str] = {}
        self.turned: set[str] = set()
        self.foreign: str | None = None

    def read(self, key: str) -> _Key | str:
        """The key in parts, or as it stands where it names no module (a prompt's)."""
        parts = self._bare(key.split("."))
        prefix = FILE_PREFIX.rstrip(".").split(".")
        count = 0
        # some tools add the prefix once more to keys that have it
        while parts[:2] == prefix and "base_model" not in self.own_names:
            parts, count = self._bare(parts[2:]), count + 1
        path, tensor = self._split(parts)
        # a prompt's key names no module and has no prefix
        if not path and not count:
            return ".".join(parts)
        name = ".".join(tensor)
        if name in self.other_names:
            self.turned.add(key)
            tensor = self.other_names[name].split(".")
            self.foreign = f"`{key}`, as MLX names them"
        elif count != 1 and self.foreign is None:
            self.foreign = f"`{key}` has the prefix {FILE_PREFIX} {'twice' if count else 'nowhere'}"
        return _Key(path, tuple(tensor))

    def _bare(self, parts: Sequence[str]) -> list[str]:
        """Without the names of wrappers."""
        bare = [part for part in parts if part not in WRAPPERS or part in self.own_names]
        self.stripped |= dict.fromkeys(part for part in parts if part in WRAPPERS and part not in self.own_names)
        # some models have a part of their own that is called `module`
        while bare[:1] == [PARALLEL] and PARALLEL not in self.paths:
            bare = bare[1:]
            self.stripped[PARALLEL] = None
        return bare

    def _split(self, parts: Sequence[str]) -> tuple[str, list[str]]:
        """The longest path of a module, by its present name, and what is left."""
        # the longest first: a module's own path is a beginning of its children's
        for cut in range(len(parts) - 1, 0, -1):
            path = ".".join(parts[:cut])
            if path in self.paths:
                return path, list(parts[cut:])
            # names of modules are renamed by the names of their weights
            present = self.conversions.present_name(f"{path}.weight").removesuffix(".weight")
            if present != path and present in self.paths:
                self.renamed[path] = present
                return present, list(parts[cut:])
        return "", list(parts)

    def tell_all(self, where: str) -> None:
        if self.stripped:
            tell(f"names of wrappers are left out of the keys: {named(self.stripped)}", where=where)
        if self.renamed:
            first = next(iter(self.renamed.items()))
            tell(f"modules have other names in this transformers: `{first[0]}` is `{first[1]}` now", where=where)


def _without_adapter_name(parsed: dict[str, _Key | str]) -> dict[str, _Key | str]:
    """The adapter's name taken out of tensor names: `default`, or another one that stands in every key.

    With more parts than tensor, name and `weight` a key names modules that this model does not have (yet).
    """
    inner = {found.tensor[1] for found in parsed.values() if isinstance(found, _Key) and len(found.tensor) > 1}
    # at most three parts (tensor, name, `weight`): more would be a path that this model lacks
    everywhere = all(isinstance(found, _Key) and 1 < len(found.tensor) <= 3 for found in parsed.values())
    others = inner if everywhere and len(inner) == 1 else set()
    names = {LIVE_NAME} | (others - {"weight", "bias"})
    return {key: found if isinstance(found, str) else _nameless(found, names) for key, found in parsed.items()}


def _nameless(key: _Key, names: set[str]) -> _Key:
    return _Key(key.path, key.tensor[:1] + tuple(part for part in key.tensor[1:] if part not in names))


_SECOND_COPIES: Mapping[str, Callable[[_Key], _Key | None]] = {
    # the reference's wrapper around a module that is trained whole
    "modules_to_save": lambda key: _Key(key.path, key.tensor[1:]),
    "original_module": lambda key: None,
}


def _without_second_copies(parsed: Mapping[str, _Key | str], repeated: Sequence[str]) -> dict[str, _Key | str]:
    """Without what the reference saves twice where embeddings are saved whole.

    A trained module stands there under its plain name too. Trained tokens bring the base's own table, which has the name
    of a base layer elsewhere, and a second time where the table is tied.
    """
    plain = {found.text() for found in parsed.values() if isinstance(found, _Key)}
    kept: dict[str, _Key | str] = {}
    for key, found in parsed.items():
        if isinstance(found, _Key) and found.tensor[0] in _SECOND_COPIES:
            other = _SECOND_COPIES[found.tensor[0]](found)
            if other is not None and other.text() not in plain:
                # under the plain name unless it is there already: then both are the same tensor
                kept[key] = other
        elif isinstance(found, _Key) and found.tensor[0] in repeated and found.tensor[1:2] == ("base_layer",):
            kept[key] = _Key(found.path, found.tensor[1:])
        else:
            kept[key] = found
    return kept
