"""Whether a layer is what its type promises: a linear map of a weight of its own, applied by its own forward.

A type says little: a router that is an `nn.Linear` returns a tuple, a quantized layer packs its weight into bytes, a
parametrized one computes it at each use. All of it is read from the module itself; no class is known by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.func import functional_call
from torch.nn.parameter import is_lazy
from transformers.pytorch_utils import Conv1D

from peftcli.models.storage import storage_of
from peftcli.models.streamed import StreamedWeight
from peftcli.models.weights import is_linear, weight_view

FLOATING = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
"""Types of a weight as it stands; eight bits and fewer need scales beside them."""

_PLAIN_FORWARDS: tuple[Callable[..., Any], ...] = (nn.Linear.forward, Conv1D.forward)
_PROBED_NUMBERS = 1 << 22
_PROBE_TOLERANCE = 1e-4


def linear_fault(module: nn.Module) -> str | None:
    """Why a linear layer is not the plain map y = W x + b of a weight of its own; None where it is."""
    fault = weight_fault(module)
    # the forward of a layer whose storage is known dequantizes: it is the product with what `dense` gives
    if fault is not None or type(module).forward in _PLAIN_FORWARDS or storage_of(module).is_packed:
        return fault
    return _forward_fault(module)


def weight_fault(module: nn.Module) -> str | None:
    """Why the `weight` of a linear layer or an embedding cannot be read and replaced; None where it can."""
    if storage_of(module).is_packed:
        return None
    weight = module._parameters.get("weight")
    if weight is None:
        if isinstance(getattr(type(module), "weight", None), property) or "weight" in vars(module):
            return "its weight is computed again at each use (a parametrization); remove that first"
        return "it has no floating-point weight of its own (a quantized layer)"
    if is_lazy(weight):
        return "its weight does not exist before the first forward pass; run the model once"
    if weight.dtype not in FLOATING or _is_packed(weight):
        return f"its weight is stored as {_stored_as(weight)} (a quantized layer); open the base without quantization"
    shape, expected = tuple(weight.shape), _expected_shape(module)
    # torch's own product reads the rows from the weight: a tied head is grown by its weight alone in transformers 5.3
    if type(module).forward is nn.Linear.forward and len(shape) == 2 and expected is not None:
        expected = (shape[0], expected[1])
    if len(shape) != 2 or (expected is not None and shape != expected):
        return f"its weight has shape {list(shape)}, not {list(expected or ('out', 'in'))}"
    return None


def passes_untouched(module: nn.Module) -> str | None:
    """Why calling a linear layer is not just torch's own product with its frozen weight; None where it is.

    Asked at each pass, since hooks and gradients come and go: no class with a forward of its own is tried here.
    """
    if type(module).forward not in _PLAIN_FORWARDS or "forward" in vars(module):
        return "a layer has a forward of its own"
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return "a hook is on a layer"
    weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
    if weight is None or weight.dtype not in FLOATING or _is_packed(weight):
        return "a weight is packed"
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        return "a layer is trained itself"
    return None


def table_fault(module: nn.Module) -> str | None:
    """Why the rows of an embedding cannot be adapted; None where they can, whatever its forward makes of them."""
    if getattr(module, "max_norm", None) is not None:
        return "it shortens rows of its own table at each use (`max_norm`), which changes the base"
    return weight_fault(module)


def quantized_layers(model: nn.Module) -> Iterator[str]:
    """Paths of layers whose weights are packed in a way that is not read here: whole numbers, bytes or tensors of a
    library's own type."""
    for path, module in model.named_modules():
        if storage_of(module).is_packed:
            continue
        if is_linear(module) or isinstance(module, nn.Embedding):
            weight = module._parameters.get("weight")
            if weight is not None and not is_lazy(weight) and (weight.dtype not in FLOATING or _is_packed(weight)):
                yield path
        elif _holds_packed(module) and (_widths(module) or any(_is_whole(p) for p in module.parameters(recurse=False))):
            yield path


def _widths(module: nn.Module) -> bool:
    """Whether a module names the widths of a linear map, as quantized layers of all libraries do."""
    names = (("in_features", "out_features"), ("infeatures", "outfeatures"))
    return any(all(isinstance(getattr(module, name, None), int) for name in pair) for pair in names)


def _holds_packed(module: nn.Module) -> bool:
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    packed = any(_is_whole(tensor) for tensor in own if not is_lazy(tensor))
    # torch's own quantized layers hold an object instead, and `weight` is a method that unpacks it
    return packed or hasattr(module, "_packed_params")


def _is_whole(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() and not tensor.is_complex() and tensor.dim() >= 1


def _is_packed(weight: Tensor) -> bool:
    """Whether a parameter is a tensor of another library's type (its dtype is then what it pretends to be)."""
    # what lies in files would be read for nothing: its numbers stand there as they are
    if isinstance(weight, StreamedWeight):
        return False
    data = weight.data
    return type(data) not in (Tensor, nn.Parameter) and not isinstance(data, FakeTensor)


def _stored_as(weight: Tensor) -> str:
    name = str(weight.dtype).removeprefix("torch.")
    return f"{type(weight.data).__name__} of {name}" if _is_packed(weight) else name


def _expected_shape(module: nn.Module) -> tuple[int, int] | None:
    """What the layer says of itself (out, in); None where it does not say."""
    out_features, in_features = getattr(module, "out_features", None), getattr(module, "in_features", None)
    if isinstance(out_features, int) and isinstance(in_features, int):
        return out_features, in_features
    return None


def _forward_fault(module: nn.Module) -> str | None:
    """A class with a forward of its own is asked: does it answer with W x + b, whatever W, b and x are?"""
    rows, columns = weight_view(module).shape
    state = torch.Generator().manual_seed(0)
    values = {
        name: _drawn(tensor.shape, state) for name, tensor in module.named_parameters() if tensor.is_floating_point()
    }
    dense = values["weight"].T if isinstance(module, Conv1D) else values["weight"]
    x = torch.randn(2, columns, generator=state)
    expected = F.linear(x, dense, values.get("bias"))
    training = module.training
    try:
        module.eval()
        with torch.no_grad():
            found = functional_call(module, values, (x.clone(),))
    except Exception as error:
        return f"its forward is its own and takes other inputs than a linear layer ({type(error).__name__})"
    finally:
        module.train(training)
    if not isinstance(found, Tensor):
        return f"its forward returns a {type(found).__name__}, not the plain product with its weight"
    if found.shape != (2, rows) or not torch.allclose(found, expected, rtol=_PROBE_TOLERANCE, atol=_PROBE_TOLERANCE):
        return "its forward is more than the product with its weight"
    return None


def _drawn(shape: torch.Size, generator: torch.Generator) -> Tensor:
    if shape.numel() <= _PROBED_NUMBERS or len(shape) < 2:
        return torch.randn(shape, generator=generator)
    # one number a row, without memory: enough to tell a product from anything else
    return torch.randn(shape[0], *[1] * (len(shape) - 1), generator=generator).expand(shape)
