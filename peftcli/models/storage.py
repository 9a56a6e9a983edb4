"""How the weight of a linear layer or an embedding lies in memory: as it stands, packed by a library, or planned so.

One object a kind of storage; each reads what it needs from the module itself. The packages that pack weights are never
imported here: a module that carries a packed weight has brought its package along.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from peftcli.errors import AdapterError
from peftcli.models.spread import whole

_PLANNED = "_peftcli_planned_storage"
_BY_BLOCKS = "_peftcli_read_by_blocks"
NESTED_BLOCK = 256
"""Scales of blocks that share a scale of their own where scales are quantized too (arXiv:2305.14314, section 3)."""
NF4_BLOCK = 64


class Storage(ABC):
    """One way in which a module keeps its weight. Shapes are (rows, columns) in the layout that the module stores."""

    name: str
    """`nf4`, `int8`, ...; `plain` for numbers as they stand."""
    is_packed = True
    """Whether a value needs more than its own bytes to be read (scales of a block, of a row)."""

    @abstractmethod
    def shape(self, module: nn.Module) -> tuple[int, ...]:
        """The shape of the weight that is meant."""

    @abstractmethod
    def compute_type(self, module: nn.Module) -> torch.dtype:
        """The type that the layer multiplies in."""

    @abstractmethod
    def parts(self, module: nn.Module) -> Mapping[str, Tensor]:
        """Every tensor that the value depends on, by a name: the packed numbers, then their scales."""

    @abstractmethod
    def dense(self, module: nn.Module) -> Tensor:
        """The weight's values, detached, in the finest type that the storage knows."""

    def device(self, module: nn.Module) -> torch.device:
        """Where the weight lies."""
        return next(iter(self.parts(module).values())).device

    def stored_bytes(self, module: nn.Module) -> int:
        """Bytes of all parts."""
        return sum(part.numel() * part.element_size() for part in self.parts(module).values())

    def refuse_replacing(self) -> str:
        """Why no other value can be put there as it is."""
        return f"the weight is stored as {self.name}: a sum would have to be rounded to it again"


class Plain(Storage):
    """A parameter that holds the numbers themselves."""

    name = "plain"
    is_packed = False

    def _weight(self, module: nn.Module) -> Tensor:
        weight = module.weight
        assert isinstance(weight, Tensor)
        return weight

    def shape(self, module: nn.Module) -> tuple[int, ...]:
        return tuple(self._weight(module).shape)

    def compute_type(self, module: nn.Module) -> torch.dtype:
        return self._weight(module).dtype

    def parts(self, module: nn.Module) -> Mapping[str, Tensor]:
        return {"weight": self._weight(module)}

    def device(self, module: nn.Module) -> torch.device:
        return self._weight(module).device

    def dense(self, module: nn.Module) -> Tensor:
        return whole(self._weight(module).detach())


class Planned(Plain):
    """A weight on the meta device that will be packed once it is read: what is asked of it is answered as it will be."""

    is_packed = True

    def __init__(self, name: str) -> None:
        self.name = name

    def stored_bytes(self, module: nn.Module) -> int:
        rows, columns = self.shape(module)
        return planned_bytes(self.name, rows, columns)


def planned_bytes(name: str, rows: int, columns: int) -> int:
    """Bytes of a (rows, columns) weight in a storage that we can make."""
    count = rows * columns
    if name == "nf4":
        blocks = -(-count // NF4_BLOCK)
        # the table of 16 values, that of the 256 scales' values, and their offset
        tables = 4 * (16 + 256 + 1)
        return -(-count // 2) + blocks + 4 * -(-blocks // NESTED_BLOCK) + tables
    return count + 4 * rows


class FourBit(Storage):
    """bitsandbytes' parameter of 4-bit numbers: two a byte, a scale a block, the scales perhaps quantized in turn."""

    def __init__(self, name: str) -> None:
        self.name = name

    @staticmethod
    def _settled(module: nn.Module) -> Any:
        """The parameter with its quantization state, in the layout that it was quantized to.

        On CPUs with bfloat16 arithmetic the library repacks weights at the first forward pass in evaluation, with
        scales that are rounded to bfloat16: unpacked again here, and not done again (`keep_layouts`).
        """
        keep_layout(module)
        weight: Any = module.weight
        if getattr(weight.quant_state, "packing_format_for_cpu", False):
            module._save_to_state_dict({}, "", False)
        return module.weight

    def shape(self, module: nn.Module) -> tuple[int, ...]:
        state: Any = module.weight.quant_state  # type: ignore[union-attr]
        return tuple(state.shape)

    def compute_type(self, module: nn.Module) -> torch.dtype:
        known: torch.dtype | None = getattr(module, "compute_dtype", None)
        return known or self._settled(module).quant_state.dtype

    def parts(self, module: nn.Module) -> Mapping[str, Tensor]:
        weight = self._settled(module)
        state = weight.quant_state.as_dict(packed=False)
        scales = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        if (offset := getattr(weight.quant_state, "offset", None)) is not None:
            scales["offset"] = torch.as_tensor(offset)
        return {"weight": weight.data, **dict(sorted(scales.items()))}

    def dense(self, module: nn.Module) -> Tensor:
        from bitsandbytes.functional import dequantize_4bit

        weight = self._settled(module)
        if _BY_BLOCKS in module.__dict__:
            return _by_blocks(weight.data, weight.quant_state)
        with torch.no_grad():
            found: Tensor = dequantize_4bit(weight.data, weight.quant_state)
        return found.reshape(self.shape(module))

    def runs_over_rows(self, module: nn.Module) -> bool:
        """Whether some block of numbers with one scale ends in another row than it begins."""
        state = self._settled(module).quant_state
        return bool(state.shape[-1] % state.blocksize)

    @staticmethod
    def read_by_blocks(module: nn.Module) -> None:
        """Has `dense` read a weight number by number, as it was packed, past the library's own routine."""
        module.__dict__[_BY_BLOCKS] = True


@torch.no_grad()
def _by_blocks(packed: Tensor, state: Any) -> Tensor:
    """The values of 4-bit numbers, the upper half of each byte first: a table's entry times the scale of its block."""
    from bitsandbytes.functional import dequantize_blockwise

    scales = state.absmax
    if state.nested:
        scales = dequantize_blockwise(scales, state.state2) + state.offset
    pairs = packed.reshape(-1).view(torch.uint8)
    # an odd count leaves half a byte at the end
    indices = torch.stack([pairs >> 4, pairs & 0xF], 1).flatten()[: math.prod(state.shape)]
    blocks = torch.arange(len(indices), device=indices.device) // state.blocksize
    values: Tensor = state.code.float()[indices.long()] * scales.float()[blocks]
    return values.reshape(tuple(state.shape)).to(state.dtype)


class EightBit(Storage):
    """bitsandbytes' parameter of 8-bit numbers with a scale a row (LLM.int8(), arXiv:2208.07339)."""

    name = "int8"

    @staticmethod
    def _parts(module: Any) -> tuple[Tensor, Tensor]:
        # the library moves them from the parameter to the layer's state at the first forward pass
        state = getattr(module, "state", None)
        for numbers, scales in ((module.weight.CB, module.weight.SCB), (_of(state, "CB"), _of(state, "SCB"))):
            if scales is not None:
                return (module.weight.data if numbers is None else numbers), scales
        raise AdapterError("an int8 layer holds no scales: its weight was not quantized yet")

    def shape(self, module: nn.Module) -> tuple[int, ...]:
        return tuple(module.weight.shape)  # type: ignore[arg-type]

    def compute_type(self, module: nn.Module) -> torch.dtype:
        # the product is cast back to the type of its input, which the weight does not know
        bias = module._parameters.get("bias")
        return torch.float32 if bias is None else bias.dtype

    def parts(self, module: nn.Module) -> Mapping[str, Tensor]:
        numbers, scales = self._parts(module)
        return {"weight": numbers, "scales": scales}

    def dense(self, module: nn.Module) -> Tensor:
        numbers, scales = self._parts(module)
        return numbers.detach().float() * (scales.detach().float()[:, None] / 127.0)


def _of(state: Any, name: str) -> Tensor | None:
    found: Tensor | None = getattr(state, name, None)
    return found


PLAIN = Plain()
_EIGHT_BIT = EightBit()


def storage_of(module: nn.Module) -> Storage:
    """How a module stores its weight; `PLAIN` for what no library has packed, and for what nobody here can read."""
    # asked first: a skeleton has no packed parameter to look at
    planned: str | None = module.__dict__.get(_PLANNED)
    if planned is not None:
        return Planned(planned)
    weight: Any = module._parameters.get("weight")
    if weight is None or not type(weight).__module__.startswith("bitsandbytes."):
        return PLAIN
    if getattr(weight, "quant_state", None) is not None:
        return FourBit(str(weight.quant_type))
    # not quantized yet, or without scales: still plain numbers
    if getattr(weight, "bnb_quantized", None) is False or not hasattr(weight, "SCB"):
        return PLAIN
    # kept in half precision on purpose, for layers that int8 would hurt
    return PLAIN if weight.has_fp16_weights else _EIGHT_BIT


def was_transposed(module: nn.Module) -> bool:
    """Whether a packed layer stands for one that stores (in, out), as GPT-2's: packed, it is (out, in)."""
    source = getattr(module, "source_cls", None)
    return isinstance(source, type) and issubclass(source, Conv1D)


def plan_storage(module: nn.Module, name: str) -> None:
    """Says that a module of a skeleton will be stored so once its weight is read."""
    module.__dict__[_PLANNED] = name


def keep_layout(module: nn.Module) -> None:
    """Holds a layer's packed numbers as they are: bitsandbytes would repack them for inference on some CPUs, with
    coarser scales, and training and evaluation would then see two bases."""
    if getattr(module, "support_avx512bf16_for_cpu", False):
        module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def keep_layouts(model: nn.Module) -> None:
    """The same for every layer of a model."""
    for module in model.modules():
        keep_layout(module)


def packed_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Path and module of every layer whose weight is packed in a storage that is read here, planned ones too."""
    return ((path, module) for path, module in model.named_modules() if storage_of(module).is_packed)


def logical_numel(module: nn.Module, name: str, parameter: Tensor) -> int:
    """How many numbers a parameter stands for: packed bytes hold more or fewer elements than the weight has."""
    storage = storage_of(module)
    return math.prod(storage.shape(module)) if name == "weight" and storage.is_packed else parameter.numel()
