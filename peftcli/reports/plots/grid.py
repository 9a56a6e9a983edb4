"""Updates by place: a grid of blocks (across) and modules (down), the deeper the colour the larger the change."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from peftcli.reports import numbers
from peftcli.reports.plots.elements import tag
from peftcli.reports.plots.frame import picture, place
from peftcli.reports.record import LayerUpdate
from peftcli.reports.visible import clipped

_ROW = 26
# the first number of a name is the block; numbers after it are experts or parts of a module
_BLOCK = re.compile(r"(?:^|\.)(\d+)\.")
# a cell that hardly moved is still seen to be a cell
_FAINTEST = 0.06
_LABEL = 15
_MAX_NAME = 120


@dataclass(frozen=True)
class Cell:
    """One square of the grid: a module in a block, and how far its weight was moved."""

    block: int
    module: str
    update: LayerUpdate


def cells(updates: Sequence[LayerUpdate]) -> list[Cell]:
    """Updates whose names hold a block number: `model.layers.3.mlp.up_proj` -> block 3, module `mlp.up_proj`."""
    found = []
    for update in updates:
        if match := _BLOCK.search(update.name):
            found.append(Cell(int(match[1]), update.name[match.end() :], update))
    return found


def size(update: LayerUpdate) -> float:
    """The relative change where it is known, else the norm; 0 where neither is."""
    return update.relative if update.relative is not None else update.norm or 0.0


def update_grid(slug: str, found: Sequence[Cell]) -> Markup:
    """One line of cells for each module, its name above it."""
    blocks = sorted({cell.block for cell in found})
    modules = list(dict.fromkeys(cell.module for cell in found))
    largest = max((size(cell.update) for cell in found), default=0.0) or 1.0
    labels = _labels(modules)
    rows = []
    for row, module in enumerate(modules):
        line = {cell.block: cell for cell in found if cell.module == module}
        rows.append(tag("text", labels[module], x="-8", y=row * _ROW + 16, class_="tick", text_anchor="end"))
        rows += [
            _cell(line[block], column, len(blocks), row, largest)
            for column, block in enumerate(blocks)
            if block in line
        ]
    description = f"{len(found)} layers in {len(blocks)} blocks; the largest change is {numbers.plain(largest, 3)}"
    return picture(
        slug,
        "Size of the update by block and module",
        description,
        rows,
        _block_numbers(blocks, len(modules)),
        height=_ROW * len(modules) + 20,
    )


def _cell(cell: Cell, column: int, num_blocks: int, row: int, largest: float) -> Markup:
    # relative to the largest: update sizes of methods differ by orders of magnitude
    share = size(cell.update) / largest
    width = 1 / num_blocks
    return tag(
        "rect",
        tag("title", f"{clipped(cell.update.name, _MAX_NAME)}: {describe(cell.update)}"),
        x=place((column + 0.04) * width),
        y=row * _ROW + 1,
        width=place(0.92 * width),
        height=_ROW - 3,
        rx="2",
        class_="cell",
        fill_opacity=round(_FAINTEST + (1 - _FAINTEST) * share, 3),
    )


def describe(update: LayerUpdate) -> str:
    """`0.184 (2.31 % of the base)`."""
    text = numbers.plain(update.norm, 3)
    return f"{text} ({numbers.percent(update.relative)} of the base)" if update.relative is not None else text


def _block_numbers(blocks: Sequence[int], num_rows: int) -> list[Markup]:
    # twelve numbers fit on a phone
    stride = max(1, -(-len(blocks) // 12))
    return [
        tag(
            "text",
            str(block),
            x=place((column + 0.5) / len(blocks)),
            y=num_rows * _ROW + 16,
            class_="tick",
            text_anchor="middle",
        )
        for column, block in enumerate(blocks)
        if column % stride == 0
    ]


def _labels(modules: Sequence[str]) -> dict[str, str]:
    """The last part of each name where that tells them apart, held to a length that fits the margin."""
    tails = {module: module.rsplit(".", 1)[-1] for module in modules}
    chosen = tails if len(set(tails.values())) == len(tails) else dict(zip(modules, modules, strict=True))
    return {module: text if len(text) <= _LABEL else f"…{text[1 - _LABEL :]}" for module, text in chosen.items()}
