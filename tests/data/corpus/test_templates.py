"""Chat templates of real models (`make templates`): ids are the tokenizer's own, and what is trained is what an oracle says
that shares no code with us. A difference is stated, by a refusal or a finding; none is silent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.data.corpus.corpus import run, table

pytestmark = pytest.mark.slow


def test_no_difference_is_silent() -> None:
    """`PEFTCLI_TEMPLATES` names the folder that `fetch.py` fills."""
    folder = Path(os.environ.get("PEFTCLI_TEMPLATES", ""))
    if not os.environ.get("PEFTCLI_TEMPLATES") or not any(folder.glob("*.jinja")):
        pytest.skip("PEFTCLI_TEMPLATES names no folder of chat templates")
    outcomes = list(run(folder))
    print(table(outcomes))
    assert len({each.template for each in outcomes}) >= 140
    assert len(outcomes) == 16 * len({each.template for each in outcomes})
    assert [each for each in outcomes if each.kind == "silent"] == []
    assert sum(each.kind == "exact" for each in outcomes) > len(outcomes) / 3
