"""The methods, as `peft methods` tells them: what each is, and what it was seen to work with. Free of torch."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from peftcli.adapters.compatibility import NOT_MERGED, YES, families, storages_of, tasks_of, works_with
from peftcli.adapters.measured import measured, measured_line, measured_of
from peftcli.adapters.registry import config_class, method_names, resolve_name, short_names
from peftcli.recipe.keys import METHOD
from peftcli.recipe.wording import wanted_text
from peftcli.tasks.registry import task_names
from peftcli.yaml_writing import flow

WIDTH = 80
"""Columns that are filled."""


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
            "tasks": dict(tasks_of(name)),
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
    lines += ["", *_compatibility_lines(), "", *_task_lines()]
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


def _works(found: str) -> bool:
    """Whether the table says of a method and a task that a recipe may have both."""
    return found == YES or found.startswith(NOT_MERGED)


def _task_lines() -> list[str]:
    """Which method works under which task, as the suite of cross products found it; only exceptions are listed."""
    lines = textwrap.wrap(
        f"tried under the tasks {', '.join(task_names())}; every method learns all of them, but:", WIDTH - 1
    )
    for task in task_names():
        refused = [name for name in method_names() if not _works(tasks_of(name).get(task, YES))]
        if refused:
            lines += textwrap.wrap(
                f"{task} not with {', '.join(refused)}", WIDTH - 1, initial_indent="  ", subsequent_indent="    "
            )
    return lines


def _method_tasks(found: Mapping[str, str]) -> list[str]:
    """The tasks that a method works under, why what it learns is not merged, and the reasons against the others."""
    lines = wrapped(f"tasks: {', '.join(task for task, told in found.items() if _works(told)) or 'not tried'}")
    for told in dict.fromkeys(told for told in found.values() if told != YES):
        named = ", ".join(task for task, other in found.items() if other == told)
        lines += wrapped(told if _works(told) else f"not for {named}: {told}")
    return lines


def _storages(found: Mapping[str, str]) -> list[str]:
    """The quantized bases that a method works on, and the reasons against the others."""
    good = [storage for storage, answer in found.items() if answer == YES]
    lines = wrapped(f"quantized bases: {', '.join(good)}") if good else []
    for reason in dict.fromkeys(answer for answer in found.values() if answer != YES):
        lines += wrapped(f"not on {', '.join(s for s, answer in found.items() if answer == reason)}: {reason}")
    return lines


def _method_compatibility(found: Mapping[str, str]) -> list[str]:
    """The families that a method works on, and the reasons against the others."""
    by_verdict: dict[str, list[str]] = {}
    for family, verdict in found.items():
        by_verdict.setdefault(verdict, []).append(family)
    lines = wrapped(f"works with: {', '.join(by_verdict.pop(YES, [])) or 'not tried'}")
    for reason, names in by_verdict.items():
        lines += wrapped(f"not with {', '.join(names)}: {reason}")
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
        "tasks": dict(tasks_of(own)),
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
        *wrapped(document["description"]),
        f"  kind: {document['kind']}",
        f"  files: {files}",
        f"  learning_rate: auto starts from {document['learning_rate']:g} at width {document['learning_rate_width']}",
    ]
    lines += _method_compatibility(document["works_with"])
    lines += _method_tasks(document["tasks"])
    lines += [line for told in document["measured"] for line in wrapped(told)]
    lines += _storages(document["quantized"])
    if document["preset"]:
        lines += wrapped(f"{name} sets {', '.join(f'{k}: {flow(v)}' for k, v in document['preset'].items())}")
    for key, facts in document["fields"].items():
        default = f"{key} (default {flow(facts['default'])})"
        lines += ["", *textwrap.wrap(default, WIDTH - 1, subsequent_indent="  ")]
        lines += [*wrapped(facts["description"]), *wrapped(f"value: {facts['wanted']}")]
    return "\n".join(lines)


def wrapped(text: str) -> list[str]:
    """The lines of an indented paragraph."""
    return textwrap.wrap(text, WIDTH - 1, initial_indent="  ", subsequent_indent="  ", break_long_words=False)


def _plain_default(field: FieldInfo) -> Any:
    if field.is_required():
        return None
    value = field.get_default(call_default_factory=True, validated_data={})
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value
