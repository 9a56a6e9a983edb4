"""The contract suite over methods and families: by default every method on two and every family with three."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from peftcli.adapters.compatibility import YES, works_with
from peftcli.adapters.layers import AdapterLayer
from peftcli.adapters.registry import config_class, method, method_names, own_method_names, resolve_name
from peftcli.testing import FAMILIES, Case, run_contract
from peftcli.testing.sections import SECTIONS, cases_of, reason_against

EVERY_FAMILY_METHODS = ("lora", "bottleneck", "prompt_tuning")
EVERY_METHOD_FAMILIES = ("llama", "gpt2")


def _cases(*, whole: bool) -> Iterator[tuple[str, Mapping[str, Any], str]]:
    for name, section in SECTIONS.items():
        for family in FAMILIES:
            plain = name in EVERY_FAMILY_METHODS or family in EVERY_METHOD_FAMILIES
            if whole != plain:
                yield name, section, family


def _check(name: str, section: Mapping[str, Any], family: str, record_property: Callable[[str, object], None]) -> None:
    reason = reason_against(section, family)
    if name in method_names():
        assert works_with(name).get(family) == (reason or YES), (
            f"refresh it: python -m peftcli.testing.compatibility {name}"
        )
    if reason is not None:
        pytest.skip(f"{name} on {family}: {reason}")
    outcomes = run_contract(Case(section, family))
    record_property("checks", len(outcomes))
    for outcome in outcomes:
        if outcome.skipped is not None:
            record_property("check left out", f"{outcome.check}: {outcome.skipped}")
    failed = [f"{outcome.check}: {outcome.error}" for outcome in outcomes if not outcome.passed]
    assert not failed, f"{name} on {family}\n" + "\n".join(failed)
    assert sum(outcome.skipped is None for outcome in outcomes) >= 8, "hardly a check applied"


@pytest.mark.parametrize(
    ("name", "section", "family"), list(_cases(whole=False)), ids=lambda v: v if isinstance(v, str) else ""
)
def test_contract(
    name: str, section: Mapping[str, Any], family: str, record_property: Callable[[str, object], None]
) -> None:
    _check(name, section, family, record_property)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "section", "family"), list(_cases(whole=True)), ids=lambda v: v if isinstance(v, str) else ""
)
def test_contract_in_full(
    name: str, section: Mapping[str, Any], family: str, record_property: Callable[[str, object], None]
) -> None:
    _check(name, section, family, record_property)


@pytest.mark.parametrize("name", own_method_names())
def test_a_method_has_cases_of_its_own(name: str) -> None:
    found = cases_of(name)
    assert found[name]["type"] == name, "the plain section stands under the method's own name"
    assert {resolve_name(str(section["type"]))[0] for section in found.values()} == {name}


def test_no_two_methods_share_a_label() -> None:
    assert len(SECTIONS) == sum(len(cases_of(name)) for name in own_method_names())


@pytest.mark.parametrize("name", own_method_names())
def test_a_method_says_what_it_computes(name: str) -> None:
    """Its docstring has the paper (where there is one), an equation, shapes, keys, and what it was compared with."""
    text = importlib.import_module(f"peftcli.adapters.methods.{name}.method").__doc__ or ""
    assert re.search(r"arXiv:\d{4}\.\d{5}", text) or name in ("freeze", "full")
    assert re.search(r"^    \S.* = ", text, re.MULTILINE), "an equation"
    assert "Shapes" in text
    assert re.search(r"Keys?:", text)
    assert re.search(r"[Cc]ompared\s+with|Not\s+in\s+the\s+reference\s+library", text)


@pytest.mark.parametrize("name", own_method_names())
def test_a_method_says_itself_whether_the_reference_has_it(name: str) -> None:
    own = config_class(name)
    shared = own.__mro__[1:]
    assert not any(vars(base).get("in_peft") for base in shared), "never inherited"


def test_the_switch_is_handled_in_one_place() -> None:
    for name in own_method_names():
        method(name)
    layers, found = [AdapterLayer], []
    while layers:
        found += (below := layers.pop().__subclasses__())
        layers += below
    ours = [layer for layer in found if layer.__module__.startswith("peftcli.")]
    assert len(ours) >= 14
    assert not [layer.__name__ for layer in ours if "forward" in vars(layer)], "write `adapted`"
    switched = [layer for layer in ours if "adapted" in vars(layer) and ".enabled" in inspect.getsource(layer.adapted)]
    assert not switched
