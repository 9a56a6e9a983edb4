"""Checkpoints that store their weights quantized: which of them can be read, told before anything is loaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from safetensors import safe_open

from peftcli.errors import DeviceError, ModelError
from peftcli.models.storage_names import StoredQuantization

TensorT = TypeVar("TensorT")

# numbers of 4 to 8 bits, of which each release names more
_PACKED_TYPES = ("F8_", "F6_", "F4")
READABLE: Mapping[str, str] = {"bitsandbytes": "bitsandbytes"}
"""Method of a checkpoint that is quantized already and that can be trained on -> the package that reads it."""
_PACKAGES: Mapping[str, tuple[str, ...]] = {
    "gptq": ("gptqmodel", "optimum"),
    "awq": ("gptqmodel",),
    "compressed-tensors": ("compressed_tensors",),
    "mxfp4": ("kernels",),
    "torchao": ("torchao",),
    "hqq": ("hqq",),
    "aqlm": ("aqlm",),
    "quanto": ("optimum.quanto",),
}
"""What transformers needs beside itself to read a method's checkpoints."""


def require_readable(found: StoredQuantization, name: str, where: str | None) -> None:
    """Raises `ModelError` for a method whose layers cannot be trained on, `DeviceError` where only its package lacks."""
    if found.method not in READABLE or found.storage not in ("nf4", "fp4", "int8"):
        raise quantized_base(name, found.method, where)
    if importlib.util.find_spec(READABLE[found.method]) is None:
        raise DeviceError(
            f"the weights of {name} are stored quantized ({found.storage}): reading them needs the package "
            f"{READABLE[found.method]}",
            where=where,
            fix="pip install 'peftcli[quant]'",
        )


def without_packed(tensors: Mapping[str, TensorT]) -> dict[str, TensorT]:
    """The tensors of a checkpoint's files without packed weights and what belongs to them (scales, tables)."""
    # tables of bitsandbytes tell which weights are packed: 4-bit ones have `absmax`, 8-bit ones `SCB`
    packed = {name.removesuffix(".absmax") for name in tensors if name.endswith(".weight.absmax")}
    packed |= {f"{name.removesuffix('SCB')}weight" for name in tensors if name.endswith(".SCB")}
    beside = {f"{name.removesuffix('weight')}{leaf}" for name in packed for leaf in ("SCB", "weight_format")}
    return {
        name: tensor
        for name, tensor in tensors.items()
        if name not in packed | beside
        and not any(name.startswith(f"{weight}.") for weight in _weights_of(name, packed))
    }


def _weights_of(name: str, packed: Collection[str]) -> list[str]:
    head, found, _ = name.rpartition(".weight.")
    return [f"{head}.weight"] if found and f"{head}.weight" in packed else []


def packed_type(paths: Iterable[Path]) -> str | None:
    """The first type of fewer than 16 bits for numbers that safetensors files hold: cast as they stand they would lack
    their scales. None where there is none."""
    for path in paths:
        with safe_open(path, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - no mapping
                name = str(tensors.get_slice(key).get_dtype())
                if name.startswith(_PACKED_TYPES):
                    return name
    return None


def quantized_base(name: str, storage: str, where: str | None) -> ModelError:
    """The error for a base whose storage is not read."""
    missing = [package for package in _PACKAGES.get(storage, ()) if not _is_there(package)]
    lacks = f" (transformers reads it with the package {missing[0]}, which is not here)" if missing else ""
    return ModelError(
        f"the weights of {name} are stored quantized ({storage}), which is not supported yet{lacks}",
        where=where,
        fix="a release with weights in bfloat16, where there is one, with `model.quantization: nf4` if it is too large",
    )


def _is_there(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    # a dotted name whose first part is missing raises, where a plain one gives None
    except ModuleNotFoundError:
        return False
