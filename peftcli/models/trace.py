"""Which parameters take part in a model's answer: seen in one forward pass of a twin without weights.

The twin is made from the model's own class and configuration on the meta device, and given text alone, as a language
task gives it. A parameter takes part when a gradient from the answer comes back to it. Towers for images and sound,
attention to an encoder that is not there, poolers and layers that take keys from an earlier one show without any list
of names.

What depends on values cannot be followed on the meta device: conditions are taken to hold, and a module that still fails
(a mixture's grouped product) is passed over with its input; of what lies inside, nothing is then said.

Of many layers that are copies of each other a few run, and speak for the rest where they all say the same.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from peftcli.errors import PeftcliError
from peftcli.models.alike import Few
from peftcli.models.meta import without_values
from peftcli.models.weights import WatchedWeight, is_linear

LENGTH = 8
NEVER_CALLED = "not called for text"
NO_GRADIENT = "without effect on the answer"
PASSED_BY = "whose weight is used past their forward"


@dataclass(frozen=True)
class Participation:
    """What a pass over text alone does not use; empty where nothing is known."""

    idle: Mapping[str, str] = field(default_factory=dict)
    """Name of each parameter that no gradient comes back to (shared ones by each of their names) -> why."""
    uncalled: frozenset[str] = frozenset()
    """Paths of modules whose forward does not run."""
    passed_over: frozenset[str] = frozenset()
    """Paths of modules that do not run without values."""
    read: frozenset[str] = frozenset()
    """Paths of linear layers whose weight the model computes with past their forward."""
    known: bool = False
    by_few: bool = False
    """Whether a few layers spoke for the rest."""

    def layer(self, path: str) -> str | None:
        """Why an update around the module at `path` could not train its `weight`; None where it could."""
        name = f"{path}.weight"
        return self.idle.get(name, PASSED_BY if path in self.uncalled | self.read else None)


_known: weakref.WeakKeyDictionary[nn.Module, Participation] = weakref.WeakKeyDictionary()
_alike: dict[tuple[type[nn.Module], str], Participation] = {}
"""The last few twins: a run opens its base several times."""
_REMEMBERED = 8


def participation(model: nn.Module) -> Participation:
    """What of a model takes part in its answer to text.

    Nothing is known of modules that are no transformers models, and where the twin cannot be made or run.
    """
    if model not in _known:
        _known[model] = _remembered(model)
    return _known[model]


def _remembered(model: nn.Module) -> Participation:
    config: Any = getattr(model, "config", None)
    if not callable(getattr(config, "to_dict", None)) or not callable(getattr(model, "get_input_embeddings", None)):
        return Participation()
    facts = {name: value for name, value in config.to_dict().items() if name not in ("dtype", "_name_or_path")}
    key = (type(model), repr(facts))
    if key not in _alike:
        while len(_alike) >= _REMEMBERED:
            del _alike[next(iter(_alike))]
        _alike[key] = _traced(model, config)
    return _alike[key]


def rehearsal(
    model: nn.Module, trained: Mapping[str, Tensor], module_at: Callable[[str], nn.Module | None]
) -> str | None:
    """What goes wrong when a model without weights runs with an adapter on it: what is raised, or which of the trained
    tensors no gradient would reach; None where nothing does, or where the bare model cannot be run either.

    `module_at`: what stands at a path of the bare model now. Where a part had to be passed over, shapes after it may
    be off: there only our own errors count.
    """
    bare = participation(model)
    if not bare.known:
        return None
    modes = {module: module.training for module in model.modules()}
    hidden = {id(module): module for path in bare.passed_over if (module := module_at(path)) is not None}
    shields = [_shield(module, lambda: None) for module in hidden.values()]
    few = Few(model) if bare.by_few else None
    if few is not None:
        trained = {name: tensor for name, tensor in trained.items() if not few.passes_tensor(tensor)}
    try:
        with warnings.catch_warnings(), torch.enable_grad(), without_values():
            warnings.simplefilter("ignore")
            with contextlib.nullcontext() if few is None else few.running():
                answer = _answer(model.eval())
            gradients = torch.autograd.grad(answer, list(trained.values()), allow_unused=True)
    except Exception as error:  # whatever a foreign forward raises
        if bare.passed_over and not isinstance(error, PeftcliError):
            return None
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    finally:
        for shielded in shields:
            del shielded.forward
        for module, training in modes.items():
            module.training = training
    idle = [name for name, gradient in zip(trained, gradients, strict=True) if gradient is None]
    return f"no gradient would reach {', '.join(idle[:3])}" if idle and not bare.passed_over else None


def _traced(model: nn.Module, config: Any) -> Participation:
    return _by_few(model, config) or _seen(model, config) or Participation()


def _by_few(model: nn.Module, config: Any) -> Participation | None:
    """What a few of many equal layers tell; None where there are not many, or where those few do not say the same."""
    twin = _twin(model, config)
    few = None if twin is None else Few(twin)
    if few is None or not few.saves:
        return None
    seen = _seen(model, config, twin=twin, few=few)
    if seen is None or not few.agree({*seen.idle, *seen.uncalled, *seen.passed_over, *seen.read}):
        return None

    def all_of(paths: Iterable[str]) -> frozenset[str]:
        return frozenset(every for path in paths for every in few.spread(path))

    return Participation(
        idle={every: reason for name, reason in seen.idle.items() for every in few.spread(name)},
        uncalled=all_of(seen.uncalled),
        passed_over=all_of(seen.passed_over),
        read=all_of(seen.read),
        known=True,
        by_few=True,
    )


def _seen(
    model: nn.Module, config: Any, *, twin: nn.Module | None = None, few: Few | None = None
) -> Participation | None:
    """One pass of a twin, of all its layers or of `few`; None where the twin cannot be made or run."""
    twin = _twin(model, config) if twin is None else twin
    if twin is None:
        return None
    try:
        with warnings.catch_warnings(), torch.enable_grad(), without_values():
            warnings.simplefilter("ignore")
            return _Watch(twin.eval(), few).participation()
    except Exception:  # whatever a foreign forward raises on the meta device
        return None


def _twin(model: nn.Module, config: Any) -> nn.Module | None:
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with torch.device("meta"):
                twin: nn.Module = type(model)(copy.deepcopy(config))
            twin.tie_weights()  # type: ignore[operator]
            return twin
    except Exception:  # whatever a foreign constructor raises on the meta device
        return None


@dataclass
class _Watch:
    """One forward pass of the twin, and what was seen of it."""

    twin: nn.Module
    few: Few | None = None
    called: set[str] = field(default_factory=set)
    passed_over: list[str] = field(default_factory=list)
    read: set[str] = field(default_factory=set)

    def participation(self) -> Participation:
        modules = dict(self.twin.named_modules())
        for path, module in modules.items():
            if path:
                self._watch(path, module)
        parameters = {
            f"{path}.{name}" if path else name: parameter
            for path, module in modules.items()
            for name, parameter in module._parameters.items()
            if parameter is not None and parameter.is_floating_point()
        }
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        with contextlib.nullcontext() if self.few is None else self.few.running():
            answer = _answer(self.twin)
        gradients = torch.autograd.grad(answer, list(parameters.values()), allow_unused=True)
        idle = [name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None]
        return Participation(
            idle={name: self._reason(name) for name in idle if not self._is_hidden(name)},
            uncalled=frozenset(path for path in modules if path not in self.called and not self._is_hidden(path)),
            passed_over=frozenset(self.passed_over),
            read=frozenset(self.read),
            known=True,
        )

    def _reason(self, name: str) -> str:
        return NO_GRADIENT if name.rpartition(".")[0] in self.called else NEVER_CALLED

    def _is_hidden(self, path: str) -> bool:
        """Whether nothing is known of it: it lies in a module or a layer that did not run."""
        if self.few is not None and self.few.passes(path):
            return True
        return any(path.startswith(f"{outer}.") for outer in self.passed_over)

    def _watch(self, path: str, module: nn.Module) -> None:
        """Notes calls of a module, and lets one that fails pass its input on, so that what lies after is still seen."""
        module.register_forward_pre_hook(lambda module, args: self.called.add(path))
        if is_linear(module):
            self._watch_weight(path, module)
        _shield(module, lambda: self.passed_over.append(path))

    def _watch_weight(self, path: str, module: nn.Module) -> None:
        """Notes where the model computes with the weight of a linear layer that is not running."""
        kind: Any = type(module)
        running: list[bool] = []
        module.register_forward_pre_hook(lambda module, args: running.append(True))
        module.register_forward_hook(lambda module, args, output: running.clear())

        def read(module: nn.Module, name: str) -> Any:
            value = kind.__getattr__(module, name)
            if running or name != "weight" or not isinstance(value, Tensor):
                return value
            return WatchedWeight.telling(value, path, lambda: self.read.add(path))

        module.__class__ = type(kind.__name__, (kind,), {"__getattr__": read})


def _shield(module: nn.Module, failed: Callable[[], None]) -> nn.Module:
    """Lets a module that raises give back its input instead, tied to everything that it was given; tells so."""
    forward = module.forward

    def shielded(*args: Any, **kwargs: Any) -> Any:
        try:
            return forward(*args, **kwargs)
        except Exception:
            inputs = [value for value in _tensors([args, kwargs]) if value.is_floating_point()]
            if not inputs:
                raise
            failed()
            first, *others = inputs
            return first + sum((0.0 * other.sum() for other in others), start=torch.zeros((), device="meta"))

    module.forward = shielded
    return module


def _answer(twin: nn.Module) -> Tensor:
    """A number that depends on everything that the model says about a few tokens."""
    ids = torch.ones(1, LENGTH, dtype=torch.int64, device="meta")
    inputs: dict[str, Any] = {"input_ids": ids}
    takes = inspect.signature(twin.forward).parameters
    if bool(getattr(twin.config, "is_encoder_decoder", False)) and "decoder_input_ids" in takes:
        inputs["decoder_input_ids"] = ids
    if "use_cache" in takes:
        inputs["use_cache"] = False
    output = twin(**inputs)
    logits = getattr(output, "logits", None)
    said = [value for value in _tensors([output if logits is None else logits]) if value.is_floating_point()]
    return torch.stack([value.float().sum() for value in said]).sum()


def _tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor inside of nested lists, tuples and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
