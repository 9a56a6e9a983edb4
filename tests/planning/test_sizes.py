"""Sizes as people write and read them."""

from __future__ import annotations

import pytest

from peftcli.errors import RecipeError
from peftcli.planning.sizes import MINIMUM_BYTES, parse_size, size_text


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GB", 2_000_000_000), ("500MiB", 500 << 20), ("1.5 GiB", 3 << 29), ("70000", 70_000), ("80kb", 80_000)],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text, "2GB") == size


@pytest.mark.parametrize("text", ["", "much", "2 TBs", "-1GB", "1KB", "0", "1e9"])
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_size(text, "24GiB")
    assert "24GiB" in caught.value.render()


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1,023 B"), (MINIMUM_BYTES, "64.0 KiB"), (3 << 29, "1.5 GiB"), (1 << 42, "4,096.0 GiB")],
)
def test_sizes_are_written(size: int, text: str) -> None:
    assert size_text(size) == text
