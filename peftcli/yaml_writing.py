"""Documents as YAML text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import yaml

from peftcli.yaml import scalar


def dump(document: Mapping[str, Any]) -> str:
    """Data as YAML text that `parse` reads back to the same data; keys in their order."""
    text: str = yaml.dump(
        dict(document), Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=110
    )
    return text


_BARE = re.compile(r"[\w./~-]([\w./~:@+ -]*[\w./~@+-])?")


def flow(value: Any) -> str:
    """A value on one line, as a recipe would have it: `true`, `null`, `[a, b]`, `{r: 4}`; texts that YAML would read as
    something else are quoted."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{flow(key)}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple | set | frozenset):
        return "[" + ", ".join(flow(item) for item in value) + "]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, str):
        # what a bare text may not hold: `: ` would make a key of what is before it, `- ` an item of a list
        bare = _BARE.fullmatch(value) and ": " not in value and value[:2] != "- " and scalar(value) == value
        return value if bare else json.dumps(value, ensure_ascii=False)
    return str(value)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        # the same list under two keys would be written as an anchor and an alias, which `parse` refuses
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        # PyYAML does not indent the items of a list under their key; the recipes that we ship do
        super().increase_indent(flow, False)


def _represent_text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    # quoted whenever our own rules would read something else than this text
    plain_text = scalar(value) == value and value.strip() == value and "${" not in value
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if plain_text else '"')


def _represent_float(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
    text = repr(value)
    return dumper.represent_scalar("tag:yaml.org,2002:float", text if "." in text or "e" not in text else _dotted(text))


def _dotted(text: str) -> str:
    # YAML 1.1 readers need the point: 1e-05 -> 1.0e-05
    mantissa, _, exponent = text.partition("e")
    return f"{mantissa}.0e{exponent}"


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(float, _represent_float)
