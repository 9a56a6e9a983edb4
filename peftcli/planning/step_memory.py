"""One training step, and one evaluated batch, rehearsed without weights: what they hold at most beside the model.

The task's own loss runs on the meta device, forward and backward, on rows of the data, with the adapter on and layers
recomputed as in training. Of many equal layers two run, then three: the difference is what each of the others adds.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from peftcli.adapters.base import Adapter
from peftcli.kernels import active as fast_paths
from peftcli.kernels.names import GATED_MLP
from peftcli.models.alike import groups_of, listed_layers, passed_by
from peftcli.models.attention_kernel import attention_of_devices
from peftcli.models.meta import without_values
from peftcli.models.structure import input_embedding
from peftcli.planning.live_memory import Bytes, GroupedProducts, LiveMemory
from peftcli.tasks.base import Batch, Task
from peftcli.training.activation_checkpointing import checkpointed_blocks
from peftcli.training.gated_forwards import gated_blocks

_FEW = 2
_MANY = 6
"""Alike layers from which on the rest is extrapolated."""


@dataclass(frozen=True)
class Rehearsal:
    """A model on the meta device with its adapter, in the types of training."""

    model: nn.Module
    adapter: Adapter
    task: Task
    blocks: Mapping[str, nn.Module]
    """Path -> layer, as training recomputes them."""
    kernels: tuple[str, ...] = ()
    """Fast paths of the training passes."""
    _tried: list[bool] = field(default_factory=list)
    _facts: fast_paths.Facts = field(default_factory=WeakKeyDictionary)

    def training(self, batch: Batch, *, pads: bool, checkpoint_every: int) -> Bytes:
        """The most that a step on a micro-batch holds beside weights, adapter and optimizer."""
        with self._mode(training=True):
            return self._counted(batch, pads, checkpoint_every, backward=True)

    def evaluation(self, batch: Batch, *, pads: bool) -> Bytes:
        """The most that scoring a batch holds beside weights and adapter."""
        with self._mode(training=False), torch.no_grad():
            return self._counted(batch, pads, 0, backward=False)

    @contextmanager
    def _mode(self, *, training: bool) -> Iterator[None]:
        before = {module: module.training for module in self.model.modules()}
        self.model.train(training)
        self.adapter.set_training(training)
        try:
            yield
        finally:
            for module, was in before.items():
                module.training = was

    def _counted(self, batch: Batch, pads: bool, every: int, *, backward: bool) -> Bytes:
        recomputed = set(list(self.blocks)[::every]) if every else set()
        layers = listed_layers(self.model)
        paths, members = list(layers), list(layers.values())
        groups = groups_of(members, lambda place: paths[place] in recomputed)

        def run(kept: Collection[int]) -> list[Bytes]:
            with passed_by(members, groups, kept):
                return self._run(batch, pads, every, members[:1] if backward else [])

        repeated = [group for group in groups if len(group) >= _MANY]
        alone = {place for group in groups if len(group) < _MANY for place in group}
        few = alone | {place for group in repeated for place in group[:_FEW]}
        base = run(few)
        phases = base
        for group in repeated:
            more = run(few | {group[_FEW]})
            added = [many.plus(one, -1) for one, many in zip(base, more, strict=True)]
            phases = [phase.plus(each, len(group) - _FEW) for phase, each in zip(phases, added, strict=True)]
        return max(phases, key=lambda phase: phase.total)

    def _run(self, batch: Batch, pads: bool, every: int, first: Sequence[nn.Module]) -> list[Bytes]:
        trained = list(self.adapter.trainable_parameters().values())
        vocabulary = input_embedding(self.model)
        rows = int(getattr(vocabulary, "num_embeddings", 0))
        live = LiveMemory([*self.model.parameters(), *self.model.buffers(), *trained], rows)
        with ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            stack.enter_context(torch.random.fork_rng(devices=[]))
            stack.enter_context(without_values())
            stack.enter_context(GroupedProducts())
            if not self._tried:
                with torch.no_grad():
                    # what a loss tries once on a model, it has tried then
                    self.task.loss(self.model, batch)
                self._tried.append(True)
            stack.enter_context(without_values(conditions=not pads))
            stack.enter_context(fast_paths.using(self.kernels, self._facts))
            stack.enter_context(gated_blocks(self.model, GATED_MLP in self.kernels))
            fast_paths.next_step()
            stack.enter_context(checkpointed_blocks(list(self.blocks.values()), every))
            for mode in (attention_of_devices(), live):
                stack.enter_context(mode)
            for parameter in trained if torch.is_grad_enabled() else []:
                hook = parameter.register_post_accumulate_grad_hook(live.gradient_came)
                stack.callback(hook.remove)
            for block in first:
                # the backward pass of all others has ended when it comes to the first one's
                stack.callback(block.register_forward_hook(_marks(live)).remove)
            try:
                found = self.task.loss(self.model, batch)
                if torch.is_grad_enabled():
                    (found.total / found.weight).backward()
            finally:
                for parameter in trained:
                    parameter.grad = None
        return [*live.peaks, Bytes()][:2]


def _marks(live: LiveMemory) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        hidden = next((leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.requires_grad), None)
        if hidden is not None:
            hidden.register_hook(lambda gradient: live.next_phase())

    return hook
