"""P-tuning (arXiv:2103.10385, section 3): the virtual tokens are what a small network makes of trained inputs.

    MLP    P = W3 relu(W2 relu(W1 z + b1) + b2) + b3
    LSTM   P = W2 relu(W1 [h->; h<-](z) + b1) + b2

Shapes: z and P (n, width of the token embedding), hidden layers `encoder_hidden_size` (LSTM: twice that, two directions).
Key: `prompt_embeddings`, P itself, as in the reference, which discards the network. It lies beside the adapter here, so
that training can go on; without it (a file of the reference) training goes on with P itself. Compared with peft 0.21.2.
"""

from __future__ import annotations

import itertools

from torch import Tensor, nn

from peftcli.adapters.base import InitContext, Method, Shapes
from peftcli.adapters.methods.p_tuning.config import PTuningConfig
from peftcli.adapters.prompt_inputs import InputPromptAdapter
from peftcli.adapters.prompt_sites import num_rows, prompt_sites
from peftcli.adapters.prompt_start import base_facts, restart
from peftcli.adapters.prompts import PromptEncoder
from peftcli.models.weights import weight_view


class TokenEncoder(PromptEncoder):
    """Trained inputs `embedding` and the network `mlp_head`, after `lstm_head` where there is one."""

    def __init__(self, rows: int, width: int, config: PTuningConfig) -> None:
        super().__init__()
        hidden = config.encoder_hidden_size or width
        self.embedding = nn.Embedding(rows, width)
        self.lstm_head: nn.LSTM | None = None
        if config.encoder_reparameterization_type == "LSTM":
            self.lstm_head = nn.LSTM(
                width, hidden, config.encoder_num_layers, dropout=config.encoder_dropout,
                bidirectional=True, batch_first=True,
            )  # fmt: skip
            # both directions are joined, so that the head reads twice the width
            sizes = [2 * hidden, 2 * hidden, width]
        else:
            sizes = [width, hidden, hidden, width]
        # no activation before the first layer nor after the last: rows may have any sign
        layers: list[nn.Module] = [nn.Linear(sizes[0], sizes[1])]
        for before, after in itertools.pairwise(sizes[1:]):
            layers += [nn.ReLU(), nn.Linear(before, after)]
        self.mlp_head = nn.Sequential(*layers)

    def _encoded(self) -> Tensor:
        inputs: Tensor = self.embedding.weight
        if self.lstm_head is None:
            return inputs
        # one sequence of all rows: the LSTM reads them as a sentence
        states: Tensor = self.lstm_head(inputs[None])[0][0]
        return states

    def forward(self) -> Tensor:
        """P (n, width)."""
        rows: Tensor = self.mlp_head(self._encoded())
        return rows

    def initialise(self, context: InitContext) -> None:
        """As each layer starts by default, from the context's generator."""
        restart(self, context.generator)


class PTuningAdapter(InputPromptAdapter):
    """The network while training; a finished table when loaded without it."""

    config: PTuningConfig

    def new_encoder(self) -> TokenEncoder:
        table = weight_view(self.sites.embedding)
        return TokenEncoder(self.total_rows, table.shape[1], self.config)

    def file_config(self) -> PTuningConfig:
        table = weight_view(self.sites.embedding)
        hidden = self.config.encoder_hidden_size or table.shape[1]
        # the width that was used is written, as the reference does, rather than null
        return self.config.model_copy(update={"encoder_hidden_size": hidden})


class PTuning(Method):
    """Hangs the network on the model, or the table that a file holds, and hooks it in."""

    config_class = PTuningConfig

    def build(self, model: nn.Module, config: PTuningConfig, shapes: Shapes | None) -> PTuningAdapter:
        sites = prompt_sites(model)
        table = weight_view(sites.embedding)
        rows = num_rows(model, config.num_virtual_tokens, shapes)
        adapter = PTuningAdapter(model, config, sites, rows)
        adapter.start_life(table.shape[1], table.device, shapes)
        adapter.kept_fields = base_facts(model)
        return adapter


METHOD = PTuning()
