"""Which rows of a model's tables its adapter brings itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from torch import nn

from peftcli.adapters.base import FILE_PREFIX, Adapter
from peftcli.adapters.base_modules import named_base_modules
from peftcli.adapters.layers import unwrapped
from peftcli.adapters.surgery import adapter_of
from peftcli.adapters.targets import names_path
from peftcli.models.structure import input_embedding, output_embedding
from peftcli.models.weights import same_parameter


def rows_not_brought(model: nn.Module, ids: Iterable[int]) -> list[int]:
    """Those of the ids whose rows are the base's in some table, whatever stands there."""
    adapter, wanted = adapter_of(model), set(ids)
    keys = {entry.key for entry in adapter.file_entries()}
    lacking: set[int] = set()
    for number, path in enumerate(_table_paths(model)):
        whole = (f"{FILE_PREFIX}{path}.weight", f"{FILE_PREFIX}{path}.base_layer.weight")
        if keys.isdisjoint(whole):
            lacking |= wanted - _trained(adapter, path, is_input=number == 0)
    return sorted(lacking)


def _trained(adapter: Adapter, path: str, *, is_input: bool) -> set[int]:
    given = adapter.config.trained_tokens()
    if isinstance(given, Mapping):
        return {number for name, ids in given.items() if names_path(name, path) for number in ids}
    return set(given) if is_input else set()


def _table_paths(model: nn.Module) -> Iterator[str]:
    """Paths of the input and the output embedding; of tied ones the first."""
    found = [unwrapped(module) for module in (input_embedding(model), output_embedding(model)) if module is not None]
    if len(found) > 1 and same_parameter(*(table._parameters.get("weight") for table in found)):
        found = found[:1]
    for table in found:
        yield from (path for path, module in named_base_modules(model) if module is table)
