"""Feed-forward blocks with a gate, down(act(gate(x)) * up(x)), told by what they hold and proven by what they answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor, nn

from peftcli.models.modes import evaluating

_PROBED_ROWS = 3


@dataclass(frozen=True)
class GatedMlp:
    """A block and the names of its parts; these may be wrapped, now or later."""

    module: nn.Module
    gate: str
    up: str
    down: str
    activation: str

    def part(self, name: str) -> nn.Module:
        """The module that stands at a name now."""
        found = self.module._modules[name]
        assert found is not None, "stood there when the block was found"
        return found

    def inner(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """gate(x) and up(x)."""
        return self.part(self.gate)(x), self.part(self.up)(x)


def gated_candidates(model: nn.Module) -> Iterator[GatedMlp]:
    """Blocks that hold what a gated one needs, in each reading of which part is what; two of each block."""
    for module in model.modules():
        parts = {name: child for name, child in module._modules.items() if child is not None}
        linears = {name: shape for name, child in parts.items() if (shape := _shape(child)) is not None}
        others = [name for name in parts if name not in linears]
        if len(parts) != 4 or len(linears) != 3 or _holds_tensors(parts[others[0]]):
            continue
        for gate, up, down in permutations(linears):
            if linears[gate] == linears[up] == linears[down][::-1]:
                yield GatedMlp(module, gate, up, down, others[0])


def gated_mlps(model: nn.Module) -> list[GatedMlp]:
    """Blocks whose own forward gives exactly what the parts give; each once."""
    alike: dict[object, bool] = {}
    with evaluating(model):
        proven = {id(block.module): block for block in gated_candidates(model) if _is_proven(block, alike)}
    return list(proven.values())


def _shape(module: nn.Module) -> tuple[int, int] | None:
    """(out, in) of whatever stands for a linear layer, wrapped or packed; None for anything else."""
    sizes = (getattr(module, "out_features", None), getattr(module, "in_features", None))
    return sizes if isinstance(sizes[0], int) and isinstance(sizes[1], int) else None  # type: ignore[return-value]


def _holds_tensors(module: nn.Module) -> bool:
    return any(True for _ in module.parameters()) or any(True for _ in module.buffers())


def _is_proven(block: GatedMlp, alike: dict[object, bool]) -> bool:
    weight = getattr(block.part(block.gate), "weight", None)
    shape = _shape(block.part(block.gate))
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or shape is None:
        return False
    if not weight.is_meta:
        return _answers_as_its_parts(block, weight, shape[1])
    # without values shapes are all that is tried, and of a hundred layers they are those of the first
    kind = (block.gate, block.up, shape, *((type(part), _shape(part)) for part in block.module.modules()))
    if kind not in alike:
        alike[kind] = _answers_as_its_parts(block, weight, shape[1])
    return alike[kind]


def _answers_as_its_parts(block: GatedMlp, weight: Tensor, width: int) -> bool:
    x = torch.randn(1, _PROBED_ROWS, width, device=weight.device).to(weight.dtype)
    # in training too: a block may drop some of its values then
    return all(_answers_alike(block, x, training) for training in (False, True))


def _answers_alike(block: GatedMlp, x: Tensor, training: bool) -> bool:
    block.module.train(training)
    try:
        torch.manual_seed(0)  # the parts' own draws are then the same
        found = block.module(x)
        torch.manual_seed(0)
        gate, up = block.inner(x)
        kept = gate.clone()
        expected = block.part(block.down)(block.part(block.activation)(gate) * up)
    except Exception:
        # whatever it says: a block that takes or gives something else, or answers inside of its layer only
        return False
    # an activation that writes into its input leaves nothing to compute it from again
    return torch.equal(kept, gate) and isinstance(found, Tensor) and torch.equal(found, expected)
