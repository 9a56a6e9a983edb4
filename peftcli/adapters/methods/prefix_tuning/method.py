"""Prefix tuning (arXiv:2101.00190, section 4): attention over [P_k; K], [P_v; V] in every layer, P trained.

    with projection (section 4.3)    P = W2 tanh(W1 Z + b1) + b2

Shapes: P (n, 2 x layers x width of a layer's keys), layer by layer keys then values; Z (n, width of a layer's keys).
Key: `prompt_embeddings`, P itself, as in the reference, which discards the network; it lies beside the adapter here, so
that training can go on. An encoder-decoder base has its prefix in the decoder's self-attention; layer i uses the slot
2 i modulo the number of layers, as in the reference, so that later layers share the prefix of earlier ones.
Compared with peft 0.21.2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from peftcli.adapters.base import InitContext, Method, Shapes
from peftcli.adapters.methods.prefix_tuning.config import PrefixTuningConfig
from peftcli.adapters.prompt_cache import PrefixAdapter, recorded_layers
from peftcli.adapters.prompt_probe import check_layers
from peftcli.adapters.prompt_sites import CacheSite, cache_site
from peftcli.adapters.prompt_start import (
    base_facts,
    batch_ids,
    fit_output,
    restart,
    sampled_ids,
    text_ids,
)
from peftcli.adapters.prompts import PromptEncoder
from peftcli.errors import AdapterError
from peftcli.models.weights import weight_view


class PrefixEncoder(PromptEncoder):
    """Trained inputs `embedding` and the network `transform`."""

    def __init__(self, rows: int, width: int, site: CacheSite, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(rows, width)
        self.transform = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, site.width))

    def forward(self) -> Tensor:
        """P (n, 2 x layers x width of a layer's keys)."""
        rows: Tensor = self.transform(self.embedding.weight)
        return rows

    def initialise(self, context: InitContext) -> None:
        restart(self, context.generator)

    def start_at(self, rows: Tensor) -> None:
        """Sets the last layer so that the network makes `rows` as nearly as it can."""
        last = self.transform[2]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            fit_output(last, self.transform[:2](self.embedding.weight), rows)


class PrefixTuningAdapter(PrefixAdapter):
    """A table or a network of prefixes."""

    config: PrefixTuningConfig

    @property
    def counts_as_tokens(self) -> bool:
        return self.config.shift_positions

    def initialise(self, context: InitContext) -> None:
        """As in the base class, then from `prefix_init`: zeros, or what the base computes for a text."""
        super().initialise(context)
        if self.config.prefix_init == "random":
            return
        encoder, rows = self.encoder, torch.zeros_like(self.prompt())
        if self.config.prefix_init == "text":
            rows = self._text_rows(context)
        if isinstance(encoder, PrefixEncoder):
            encoder.start_at(rows)
        else:
            with torch.no_grad():
                self.prompt().copy_(rows)

    def _text_rows(self, context: InitContext) -> Tensor:
        """(n, width): each slot holds what the first layer that uses it computes for the text."""
        # what the base computes, and not the base behind a prefix
        enabled, self.enabled = self.enabled, False
        try:
            layers = recorded_layers(self.model, self.site, self._text_ids(context))
        finally:
            self.enabled = enabled
        site = self.site
        slots = torch.zeros(2 * site.num_layers, site.num_heads, self.total_rows, site.head_dim)
        # backwards, so that of layers that share a slot the first one is left in it
        for index, (keys, values) in reversed(list(enumerate(layers))):
            slots[site.slot(index)], slots[site.slot(index) + 1] = keys, values
        return slots.permute(2, 0, 1, 3).reshape(self.total_rows, site.width)

    def _text_ids(self, context: InitContext) -> Tensor:
        count = self.total_rows
        if self.config.prefix_init_text is not None:
            return text_ids(self.config.prefix_init_text, count, context, self.model)
        if context.batches is not None:
            return batch_ids(context.batches(), count)
        vocabulary = weight_view(self.model.get_input_embeddings()).shape[0]  # type: ignore[operator]
        return sampled_ids(count, vocabulary, context.generator)

    def new_encoder(self) -> PrefixEncoder | None:
        if not self.config.prefix_projection:
            return None
        width = self.config.encoder_input_size or self.site.num_heads * self.site.head_dim
        return PrefixEncoder(self.total_rows, width, self.site, self._hidden)

    @property
    def _hidden(self) -> int:
        return self.config.encoder_hidden_size or self.site.num_heads * self.site.head_dim

    def file_config(self) -> PrefixTuningConfig:
        return self.config.model_copy(update={"encoder_hidden_size": self._hidden})


class PrefixTuning(Method):
    """Hangs the prefix on the model and hooks it in."""

    config_class = PrefixTuningConfig

    def build(self, model: nn.Module, config: PrefixTuningConfig, shapes: Shapes | None) -> PrefixTuningAdapter:
        site = cache_site(model)
        check_layers(site)
        if not config.shift_positions and not site.positions.taken:
            raise AdapterError(
                "shift_positions: false needs a model that is told positions, and this one counts them itself",
                fix="leave shift_positions at true",
            )
        adapter = PrefixTuningAdapter(model, config, site)
        adapter.start_life(site.width, next(site.backbone.parameters()).device, shapes)
        heads = {"token_dim": site.num_heads * site.head_dim, "num_attention_heads": site.num_heads}
        adapter.kept_fields = base_facts(model) | heads | {"num_layers": site.num_layers}
        return adapter


METHOD = PrefixTuning()
