"""`peft explain` and `peft methods`: text made from the classes and their field documentation. Imports no torch."""

from __future__ import annotations

import textwrap
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from peftcli import errors
from peftcli.errors import PeftcliError, RecipeError
from peftcli.recipe.foreign_names import ADVICE, foreign_keys
from peftcli.recipe.json_schema import known_values
from peftcli.recipe.keys import METHOD, TYPE, Key, find_keys, items_of, near_keys, sections_of, type_names
from peftcli.recipe.telling_methods import WIDTH, methods_text, wrapped
from peftcli.recipe.wording import wanted_text
from peftcli.yaml_writing import flow

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
    lines = [*head, *wrapped(description), *wrapped(f"value: {facts['wanted']}")]
    if (known := known_values(key.owner, key.last)) and not all(name in description for name in known):
        facts["known"] = known
        lines += wrapped(f"known: {', '.join(known)}")
    if not key.field.is_required():
        facts["default"] = _default_text(key.field)
        lines += wrapped(f"default: {facts['default']}")
    else:
        lines.append("  required")
    if key.method is not None:
        facts["method"] = key.method
        facts["methods"] = [each.method for each in keys]
    if inner := _inner_keys(key):
        facts["keys"] = inner
        lines += wrapped(f"keys: {', '.join(inner)}")
    if names := sorted(name for name, ours in foreign_keys().items() if ours == key.name):
        facts["elsewhere"] = names
        lines += wrapped(f"in other tools: {', '.join(names)}")
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
    lines = [f"exit code {code}", *wrapped(matching[0].summary)]
    for found in matching:
        lines += wrapped(f"{found.__name__}: {' '.join((found.__doc__ or '').split())}")
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


def _default_text(field: FieldInfo) -> str:
    if field.is_required():
        return "none: it must be given"
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, BaseModel):
        kind = getattr(value, TYPE, None)
        return str(kind) if kind is not None else "a section with every key at its default"
    return flow(value)
