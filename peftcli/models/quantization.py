"""Loading a base so that its linear layers are packed as they are read: what transformers is told, and what is there."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import re
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from peftcli.errors import DeviceError, ModelError
from peftcli.models.dequantized import storage_name
from peftcli.models.packed_product import multiply_exactly
from peftcli.models.storage import keep_layouts, packed_modules, plan_storage
from peftcli.models.storage_names import PACKAGES
from peftcli.models.structure import structure
from peftcli.models.weights import is_linear

EXTRA = "pip install 'peftcli[quant]'"
_LOGGERS = ("bitsandbytes", "bitsandbytes.autograd._functions", "bitsandbytes.backends.cpu.ops")


def require_package(storage: str) -> None:
    """Raises `DeviceError` (5) where the package that packs weights so is not installed."""
    package = PACKAGES[storage]
    if importlib.util.find_spec(package) is None:
        raise DeviceError(f"quantization: {storage} needs the package {package}", fix=EXTRA)
    import_library()


def import_library() -> None:
    """Imports bitsandbytes, if it is here, quietly and without the kernel that it would fetch from the Hub on some CPUs:
    code from the network is never run here, and a run must not compute otherwise where it happens to be cached."""
    if importlib.util.find_spec("bitsandbytes") is None or "bitsandbytes" in sys.modules:
        return
    hush()
    kernels = sys.modules.get("kernels")
    # `None` in this table makes `import kernels` fail, which bitsandbytes takes for its absence
    sys.modules["kernels"] = None  # type: ignore[assignment]
    try:
        importlib.import_module("bitsandbytes")
    finally:
        if kernels is None:
            del sys.modules["kernels"]
        else:
            sys.modules["kernels"] = kernels


def quantizing_options(storage: str, skeleton: nn.Module, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of `from_pretrained` by which every linear layer of the backbone is packed; nothing else is touched."""
    require_package(storage)
    from transformers import BitsAndBytesConfig

    # transformers matches these names as regular expressions
    kept = [re.escape(path) for path in kept_apart(skeleton)]
    if storage == "nf4":
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=kept,
        )
    else:
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    return {"quantization_config": config}


def kept_apart(skeleton: nn.Module) -> list[str]:
    """Paths of linear layers that keep their type: heads, what shares a tensor with another module, and layers with a
    forward of their own."""
    tied = _shared_tensors(skeleton)
    linears = {path: module for path, module in skeleton.named_modules() if is_linear(module)}
    odd = [path for path, module in linears.items() if type(module) is not nn.Linear and not _is_conv1d(module)]
    exact = tuple(getattr(skeleton, "_keep_in_fp32_modules", None) or ())
    # a family says itself which layers need their precision
    odd += [path for path in linears if any(path.endswith(f".{name}") for name in exact)]
    bound = [path for path, module in linears.items() if any(id(p) in tied for p in module.parameters())]
    return list(dict.fromkeys([*structure(skeleton).heads, *odd, *bound]))


def _is_conv1d(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def _shared_tensors(model: nn.Module) -> set[int]:
    counts: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            counts[id(parameter)] = counts.get(id(parameter), 0) + 1
    return {key for key, count in counts.items() if count > 1}


def plan_quantization(skeleton: nn.Module, storage: str, kept: Sequence[str] | None = None) -> None:
    """Marks the layers of a skeleton that `quantizing_options` will pack, or that a checkpoint has packed but for what it
    has `kept`, so that a plan knows them as such."""
    kept = kept_apart(skeleton) if kept is None else [path.replace("\\.", ".") for path in kept]
    for path, module in skeleton.named_modules():
        if is_linear(module) and not _within(path, kept):
            plan_storage(module, storage)


def _within(path: str, places: Sequence[str]) -> bool:
    return any(path == place or path.startswith(f"{place}.") or path.endswith(f".{place}") for place in places)


def require_unpacked(skeleton: nn.Module, name: str, storage: str) -> None:
    """Raises `ModelError` where weights that are packed already are to be packed once more."""
    found = storage_name(skeleton)
    if found is not None:
        raise ModelError(
            f"the weights of {name} are stored as {found} already: `quantization: {storage}` would round them twice",
            fix="leave model.quantization out",
        )


def settle_quantized(model: nn.Module, dtype: torch.dtype) -> None:
    """After loading: packed layers compute in `dtype`, stay as they were packed, and say nothing at each product."""
    hush()
    keep_layouts(model)
    for _, module in packed_modules(model):
        # 8-bit layers have no type of their own to compute in
        if hasattr(module, "compute_dtype"):
            module.compute_dtype = dtype  # type: ignore[assignment]
        multiply_exactly(module)


def hush() -> None:
    """Leaves of the library's logging what is an error: it tells at each product that it rounds its input."""
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
