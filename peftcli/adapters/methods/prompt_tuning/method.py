"""Prompt tuning (arXiv:2104.08691, section 2): maximises p(y | [P; X]) over P alone.

    embedded input = [P; E(x)]

Shapes: P (n, width of the token embedding); of an encoder-decoder base (2 n, width), of which the first n rows stand
before the encoder's input and the rest is unused, as in the reference. Keys: `prompt_embeddings`, P; modules of
`modules_to_save` under `base_model.<path>`.
Compared with peft 0.21.2.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from peftcli.adapters.base import InitContext, Method, Shapes
from peftcli.adapters.methods.prompt_tuning.config import PromptTuningConfig
from peftcli.adapters.prompt_inputs import Arguments, InputPromptAdapter, lengthen_mask
from peftcli.adapters.prompt_sites import PromptSites, num_rows, prompt_sites
from peftcli.adapters.prompt_start import base_facts, rows_of, sampled_ids, text_ids
from peftcli.errors import AdapterError
from peftcli.models.spelling import named_arguments
from peftcli.models.weights import weight_view


class PromptTuningAdapter(InputPromptAdapter):
    """A table of rows."""

    config: PromptTuningConfig

    def initialise(self, context: InitContext) -> None:
        """From random rows, rows of drawn tokens or those of a text, as `prompt_tuning_init` says."""
        super().initialise(context)
        with torch.no_grad():
            self.prompt().copy_(self._start(context))

    def _start(self, context: InitContext) -> Tensor:
        table = weight_view(self.sites.embedding)
        if self.config.prompt_tuning_init == "RANDOM":
            every = rows_of(self.sites, torch.arange(table.shape[0]))
            return (
                torch.randn(self.total_rows, every.shape[1], generator=context.generator).to(every.device) * every.std()
            )
        if self.config.prompt_tuning_init_text is not None:
            return rows_of(
                self.sites, text_ids(self.config.prompt_tuning_init_text, self.total_rows, context, self.model)
            )
        return rows_of(self.sites, sampled_ids(self.total_rows, table.shape[0], context.generator))


class BehindEmbeddings(PromptTuningAdapter):
    """The same rows, put in front of what the base's whole embedding block makes of the input."""

    def hook(self) -> Iterable[RemovableHandle]:
        # the mask is lengthened before the backbone reads it, rows are written after the block that embeds, and they
        # are cut off what comes out
        yield self.sites.backbone.register_forward_pre_hook(self.extend, with_kwargs=True)
        yield embedding_block(self.sites).register_forward_hook(self.write_rows)
        yield self.sites.backbone.register_forward_hook(self.strip)

    def extend(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        """Forward pre-hook of the backbone: its mask made longer; the rows come after its embedding block."""
        self._extended = self._rows_due = self.enabled
        if not self.enabled:
            return None
        inputs = named_arguments(module, args, kwargs)
        self._place = self._placement(inputs)
        lengthen_mask(inputs, self._place)
        return (), inputs

    def write_rows(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Forward hook of the embedding block: the prompt in front of what it makes."""
        # once for each call of the backbone: a decoder may run the block again
        if not self._rows_due:
            return None
        self._rows_due = False
        return self._joined(output)


def embedding_block(sites: PromptSites) -> nn.Module:
    """The part of the backbone that embeds tokens, positions and types together. `AdapterError` where there is none."""
    # the innermost would be the table itself; the first that holds it directly is the block
    for module in sites.backbone.modules():
        if module is not sites.backbone and any(child is sites.embedding for child in module.children()):
            return module
    raise AdapterError(
        "behind_embeddings needs a base with an embedding block of its own, as BERT has",
        fix="leave behind_embeddings at false",
    )


class PromptTuning(Method):
    """Hangs the table on the model and hooks it in."""

    config_class = PromptTuningConfig

    def build(self, model: nn.Module, config: PromptTuningConfig, shapes: Shapes | None) -> PromptTuningAdapter:
        sites = prompt_sites(model)
        # fails here, before anything is hung on the model
        if config.behind_embeddings:
            embedding_block(sites)
        table = weight_view(sites.embedding)
        rows = num_rows(model, config.num_virtual_tokens, shapes)
        kind = BehindEmbeddings if config.behind_embeddings else PromptTuningAdapter
        adapter = kind(model, config, sites, rows)
        adapter.start_life(table.shape[1], table.device, shapes)
        adapter.kept_fields = base_facts(model) | self._tokenizer_fact(model, config)
        return adapter

    def _tokenizer_fact(self, model: nn.Module, config: PromptTuningConfig) -> dict[str, object]:
        # the reference refuses to read a text start that does not say whose tokenizer cut the text
        named = getattr(getattr(model, "config", None), "_name_or_path", None) or None
        return {"tokenizer_name_or_path": named if config.prompt_tuning_init == "TEXT" else None}


METHOD = PromptTuning()
