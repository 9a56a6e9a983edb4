"""Training the embedding rows of chosen tokens: `trainable_token_indices`.

The trained tensor holds whole rows (n, embedding_dim) that stand in the place of the base's, float32. Where the output
embedding is the same tensor, its logits for these tokens come from the trained rows too.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftcli.adapters.base import InitContext
from peftcli.adapters.layers import AdapterLayer, unwrapped
from peftcli.adapters.lookups import look_up
from peftcli.errors import AdapterError
from peftcli.models.plain_linear import linear_fault, table_fault
from peftcli.models.weights import weight_view

ROWS = "token_adapter.trainable_tokens_delta"


class TokenRows(AdapterLayer):
    """Rows of an embedding, or of an output embedding (`is_head`), replaced by trained ones."""

    def __init__(
        self, base_layer: nn.Module, indices: list[int], *, is_head: bool, rows: nn.Parameter | None = None
    ) -> None:
        super().__init__(base_layer)
        view = weight_view(unwrapped(base_layer))
        vocabulary, width = view.shape
        beyond = [index for index in indices if index >= vocabulary]
        if beyond or len(set(indices)) != len(indices):
            raise AdapterError(
                f"trainable_token_indices: {beyond or 'some ids'} "
                + (f"lie beyond the vocabulary of {vocabulary}" if beyond else "stand there twice"),
                fix="ids are those of the tokenizer, each once",
            )
        odd = linear_fault(unwrapped(base_layer)) if is_head else table_fault(unwrapped(base_layer))
        if odd is not None:
            raise AdapterError(f"trainable_token_indices: the rows of the base cannot be replaced: {odd}")
        self.is_head = is_head
        self.indices = list(indices)
        self.owns_rows = rows is None
        self.rows = rows if rows is not None else nn.Parameter(torch.empty(len(indices), width, device=view.device))
        slots = torch.full((vocabulary,), -1, dtype=torch.long)
        slots[torch.tensor(indices)] = torch.arange(len(indices))
        self.register_buffer("slots", slots.to(view.device), persistent=False)
        # on the device from the start: sent there at each use, it would make the host wait
        self.register_buffer("ids", torch.tensor(indices).to(view.device), persistent=False)

    slots: Tensor
    ids: Tensor

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not self.enabled:
            return self.base_layer(x, *args, **kwargs)
        if self.is_head:
            return self._scores(x, self.base_layer(x, *args, **kwargs))
        return look_up(self, self._changed, x, *args, **kwargs)

    def _changed(self, ids: Tensor, rows: Tensor) -> Tensor:
        """The trained rows in the place of the base's."""
        slots = self.slots[ids]
        trained = F.embedding(slots.clamp_min(0), self.rows).to(rows.dtype)
        return torch.where((slots >= 0)[..., None], trained, rows)

    def _scores(self, hidden: Tensor, result: Tensor) -> Tensor:
        bias = weight_view(unwrapped(self.base_layer)).bias
        scores = F.linear(hidden, self.rows.to(hidden.dtype), None if bias is None else bias[self.ids])
        return result.index_copy(-1, self.ids, scores.to(result.dtype))

    def tensors(self) -> dict[str, Tensor]:
        return {ROWS: self.rows} if self.owns_rows else {}

    @torch.no_grad()
    def initialise(self, context: InitContext) -> None:
        view = weight_view(unwrapped(self.base_layer))
        self.rows.copy_(view.dense(view.dtype)[self.ids])

    def merged(self) -> dict[str, Tensor]:
        weight = weight_view(unwrapped(self.base_layer)).dense().clone()
        weight[self.ids] = self.rows.detach().float()
        return {"weight": weight}
