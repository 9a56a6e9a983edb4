"""`peft explain` and `peft methods`: text made from the classes and their field documentation. Imports no torch."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from peftcli import errors
from peftcli.adapters.compatibility import YES, families, storages_of, works_with
from peftcli.adapters.measured import measured, measured_line, measured_of
from peftcli.adapters.registry import config_class, method_names, resolve_name, short_names
from peftcli.errors import PeftcliError, RecipeError
from peftcli.recipe.foreign_names import ADVICE, foreign_keys
from peftcli.recipe.json_schema import known_values
from peftcli.recipe.keys import METHOD, TYPE, Key, find_keys, items_of, near_keys, sections_of, type_names
from peftcli.recipe.wording import wanted_text
from peftcli.yaml_writing import flow

WIDTH = 80
_EXTRA_CODES = {0: "done; warnings may have been printed", **errors.SIGNAL_CODES}


# -- explain -----------------------------------------------------------------------------------------------------


def explain(topic: str) -> dict[str, Any]:
    """What a recipe key, an exit code or an error class is; `lines` is the text.

    Raises `RecipeError` with near names.
    """
    topic = topic.strip()
    if topic.isdigit() or _error_class(topic) is not None:
        return _explain_code(topic)
    if topic.replace("-", "_") == f"{METHOD}.{TYPE}":
        return {"key": f"{METHOD}.{TYPE}", "lines": [f"{METHOD}.{TYPE}", *methods_text().splitlines()]}
    found = find_keys(topic)
    if not found:
        raise _unknown_topic(topic)
    blocks = [_explain_key(keys) for keys in _distinct(found)]
    lines = [line for number, block in enumerate(blocks) for line in ([""] if number else []) + block["lines"]]
    return {**blocks[0], "lines": lines} | ({"all": blocks} if len(blocks) > 1 else {})


def _distinct(keys: list[Key]) -> list[list[Key]]:
    """The keys by their text: a field that several methods or optimizers share alike is explained once, for all of them."""
    texts: dict[tuple[str, str, str], list[Key]] = {}
    for key in keys:
        # the same name with another text or default is another key to a reader
        texts.setdefault((key.name, key.field.description or "", _default_text(key.field)), []).append(key)
    return list(texts.values())


def _owners(keys: list[Key]) -> str:
    """Whose field it is, where not every recipe has it: `(methods lora, adalora)`."""
    methods = list(dict.fromkeys(key.method for key in keys if key.method))
    if methods:
        return f"  (method{'s' if len(methods) > 1 else ''} {', '.join(methods)})"
    typed = [key for key in keys if TYPE in key.owner.model_fields and key.last != TYPE]
    names = list(dict.fromkeys(name for key in typed for name in type_names(key.owner)))
    return f"  ({', '.join(names)})" if names else ""


def _explain_key(keys: list[Key]) -> dict[str, Any]:
    key = keys[0]
    description = " ".join((key.field.description or "").split())
    facts: dict[str, Any] = {
        "key": key.name,
        "description": description,
        "wanted": wanted_text(key.owner, [key.last], key.name),
    }
    head = textwrap.wrap(f"{key.name}{_owners(keys)}", WIDTH - 1, subsequent_indent="    ", break_on_hyphens=False)
    lines = [*head, *_wrapped(description), *_wrapped(f"value: {facts['wanted']}")]
    if (known := known_values(key.owner, key.last)) and not all(name in description for name in known):
        facts["known"] = known
        lines += _wrapped(f"known: {', '.join(known)}")
    if not key.field.is_required():
        facts["default"] = _default_text(key.field)
        lines += _wrapped(f"default: {facts['default']}")
    else:
        lines.append("  required")
    if key.method is not None:
        facts["method"] = key.method
        facts["methods"] = [each.method for each in keys]
    if inner := _inner_keys(key):
        facts["keys"] = inner
        lines += _wrapped(f"keys: {', '.join(inner)}")
    if names := sorted(name for name, ours in foreign_keys().items() if ours == key.name):
        facts["elsewhere"] = names
        lines += _wrapped(f"in other tools: {', '.join(names)}")
    return {**facts, "lines": lines}


def _inner_keys(key: Key) -> list[str]:
    if key.name == METHOD:
        return [TYPE]
    item = items_of(key.field.annotation)
    inner = [*sections_of(key.field.annotation), *(sections_of(item) if item is not None else [])]
    return list(dict.fromkeys(name for section in inner for name in section.model_fields))


def _error_class(name: str) -> type[PeftcliError] | None:
    found = vars(errors).get(name)
    return found if isinstance(found, type) and issubclass(found, PeftcliError) else None


def _explain_code(topic: str) -> dict[str, Any]:
    classes = [found for name in vars(errors) if (found := _error_class(name)) is not None]
    named = _error_class(topic)
    code = named.exit_code if named is not None else int(topic)
    # 0 and the codes of signals have no class of error of their own
    if code in _EXTRA_CODES:
        return {"code": code, "summary": _EXTRA_CODES[code], "lines": [f"exit code {code}", f"  {_EXTRA_CODES[code]}"]}
    matching = [named] if named is not None else [found for found in classes if found.exit_code == code]
    if not matching:
        known = sorted({found.exit_code for found in classes} | set(_EXTRA_CODES))
        raise RecipeError(f"there is no exit code {code}", fix=f"codes: {', '.join(map(str, known))}")
    lines = [f"exit code {code}", *_wrapped(matching[0].summary)]
    for found in matching:
        lines += _wrapped(f"{found.__name__}: {' '.join((found.__doc__ or '').split())}")
    return {"code": code, "summary": matching[0].summary, "lines": lines}


def _unknown_topic(topic: str) -> RecipeError:
    name = topic.rsplit(".", 1)[-1].replace("-", "_")
    if name in foreign_keys():
        return RecipeError(
            f"no recipe key `{topic}`", fix=f"here it is `{foreign_keys()[name]}`: peft explain {foreign_keys()[name]}"
        )
    if name in ADVICE:
        return RecipeError(f"no recipe key `{topic}`", fix=ADVICE[name])
    near = near_keys(topic)
    hint = f"did you mean {', '.join(f'`{key}`' for key in near)}?" if near else "`peft schema` lists every key"
    return RecipeError(f"no recipe key, exit code or error named `{topic}`", fix=hint)


# -- methods -----------------------------------------------------------------------------------------------------


def methods_document() -> dict[str, Any]:
    """All methods with their facts, and the short names."""
    methods = {}
    for name in method_names():
        config = config_class(name)
        methods[name] = {
            "summary": config.summary,
            "kind": config.kind,
            "in_peft": config.in_peft,
            "works_with": dict(works_with(name)),
            "quantized": dict(storages_of(name)),
        }
    short = {name: {"method": method, "fields": dict(fields)} for name, (method, fields) in short_names().items()}
    return {"methods": methods, "short_names": short, "measured": list(measured())}


def methods_text() -> str:
    """What `peft methods` prints."""
    width = max(map(len, method_names()))
    lines = [f"{name:<{width}}  {config_class(name).kind:<9}  {config_class(name).summary}" for name in method_names()]
    if short_names():
        lines += ["", "short names:"]
    for short, (method, fields) in short_names().items():
        section = ", ".join([f"type: {method}", *(f"{key}: {flow(value)}" for key, value in fields.items())])
        lines.append(f"  {short} = {{{section}}}")
    lines += ["", *_compatibility_lines()]
    for comparison in measured():
        lines += ["", *textwrap.wrap(measured_line(comparison), WIDTH - 1, subsequent_indent="  ")]
    return "\n".join([*lines, "", "`peft methods NAME` shows a method's fields."])


def _compatibility_lines() -> list[str]:
    """Which method works on which family, as the contract suite found it; only exceptions are listed."""
    named = ", ".join(families())
    lines = textwrap.wrap(f"tried on tiny models of {named}; every method works on all of them, but:", WIDTH - 1)
    for name in method_names():
        refused = [family for family, found in works_with(name).items() if found != YES]
        if refused:
            lines += textwrap.wrap(f"{name} not on {', '.join(refused)}", WIDTH - 1, initial_indent="  ")
    return lines


def _storages(found: Mapping[str, str]) -> list[str]:
    """The quantized bases that a method works on, and the reasons against the others."""
    good = [storage for storage, answer in found.items() if answer == YES]
    lines = _wrapped(f"quantized bases: {', '.join(good)}") if good else []
    for reason in dict.fromkeys(answer for answer in found.values() if answer != YES):
        lines += _wrapped(f"not on {', '.join(s for s, answer in found.items() if answer == reason)}: {reason}")
    return lines


def _method_compatibility(found: Mapping[str, str]) -> list[str]:
    """The families that a method works on, and the reasons against the others."""
    by_verdict: dict[str, list[str]] = {}
    for family, verdict in found.items():
        by_verdict.setdefault(verdict, []).append(family)
    lines = _wrapped(f"works with: {', '.join(by_verdict.pop(YES, [])) or 'not tried'}")
    for reason, names in by_verdict.items():
        lines += _wrapped(f"not with {', '.join(names)}: {reason}")
    return lines


def method_document(name: str) -> dict[str, Any]:
    """One method with its fields. Raises `RecipeError` for an unknown one."""
    own, preset = resolve_name(name)
    config = config_class(own)
    fields = {
        key: {
            "description": " ".join((field.description or "").split()),
            "wanted": wanted_text(config, [key], f"{METHOD}.{key}"),
            "default": _plain_default(field),
        }
        for key, field in config.model_fields.items()
    }
    return {
        "name": own,
        "preset": dict(preset),
        "summary": config.summary,
        "description": " ".join((config.__doc__ or "").split()),
        "kind": config.kind,
        "peft_type": config.peft_type,
        "in_peft": config.in_peft,
        "learning_rate": config.learning_rate,
        "learning_rate_width": config.learning_rate_width,
        "works_with": dict(works_with(own)),
        "quantized": dict(storages_of(own)),
        "measured": measured_of(name),
        "fields": fields,
    }


def method_text(name: str) -> str:
    """What `peft methods NAME` prints."""
    document = method_document(name)
    files = (
        "exactly Hugging Face PEFT's format" if document["in_peft"] else "our own; Hugging Face PEFT lacks the method"
    )
    lines = [
        *textwrap.wrap(f"{document['name']}: {document['summary']}", WIDTH - 1, subsequent_indent="  "),
        *_wrapped(document["description"]),
        f"  kind: {document['kind']}",
        f"  files: {files}",
        f"  learning_rate: auto starts from {document['learning_rate']:g} at width {document['learning_rate_width']}",
    ]
    lines += _method_compatibility(document["works_with"])
    lines += [line for told in document["measured"] for line in _wrapped(told)]
    lines += _storages(document["quantized"])
    if document["preset"]:
        lines += _wrapped(f"{name} sets {', '.join(f'{k}: {flow(v)}' for k, v in document['preset'].items())}")
    for key, facts in document["fields"].items():
        default = f"{key} (default {flow(facts['default'])})"
        lines += ["", *textwrap.wrap(default, WIDTH - 1, subsequent_indent="  ")]
        lines += [*_wrapped(facts["description"]), *_wrapped(f"value: {facts['wanted']}")]
    return "\n".join(lines)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH - 1, initial_indent="  ", subsequent_indent="  ", break_long_words=False)


def _plain_default(field: FieldInfo) -> Any:
    if field.is_required():
        return None
    value = field.get_default(call_default_factory=True, validated_data={})
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


def _default_text(field: FieldInfo) -> str:
    if field.is_required():
        return "none: it must be given"
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, BaseModel):
        kind = getattr(value, TYPE, None)
        return str(kind) if kind is not None else "a section with every key at its default"
    return flow(value)
