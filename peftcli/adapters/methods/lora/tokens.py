"""Training the embedding rows of chosen tokens: `trainable_token_indices`.

The trained tensor holds whole rows (n, embedding_dim) that stand in the place of the base's, float32. Where the output
embedding is the same tensor, its logits for these tokens come from the trained rows too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftcli.adapters.base import InitContext
from peftcli.adapters.base_modules import named_base_modules
from peftcli.adapters.layers import AdapterLayer, unwrapped
from peftcli.adapters.lookups import look_up
from peftcli.adapters.methods.lora.config import LoraConfig
from peftcli.adapters.targets import names_path
from peftcli.errors import AdapterError
from peftcli.models.plain_linear import linear_fault, table_fault
from peftcli.models.structure import input_embedding
from peftcli.models.weights import weight_view

ROWS = "token_adapter.trainable_tokens_delta"
"""Name of the changed rows of an embedding in files of the reference."""


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
                + (f"lie beyond the vocabulary of {vocabulary}" if beyond else "are given twice"),
                fix="model.resize_token_embeddings(len(tokenizer)), with the tokenizer beside the adapter"
                if beyond
                else "ids are those of the tokenizer, each once",
            )
        odd = linear_fault(unwrapped(base_layer)) if is_head else table_fault(unwrapped(base_layer))
        if odd is not None:
            raise AdapterError(f"trainable_token_indices: the rows of the base cannot be replaced: {odd}")
        self.is_head = is_head
        self.indices = list(indices)
        self.owns_rows = rows is None
        self.rows = rows if rows is not None else nn.Parameter(torch.empty(len(indices), width, device=view.device))
        # token id -> its row, -1 for the others: one look-up instead of a search through the ids
        slots = torch.full((vocabulary,), -1, dtype=torch.long)
        slots[torch.tensor(indices)] = torch.arange(len(indices))
        self.register_buffer("slots", slots.to(view.device), persistent=False)
        # on the device from the start: sent there at each use, it would make the host wait
        self.register_buffer("ids", torch.tensor(indices).to(view.device), persistent=False)

    slots: Tensor
    ids: Tensor

    def adapted(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Rows looked up with the trained ones in place; of a head, logits with theirs in place."""
        if self.is_head:
            return self._scores(x, self.base_layer(x, *args, **kwargs))
        return look_up(self, self._changed, x, *args, **kwargs)

    def _changed(self, ids: Tensor, rows: Tensor) -> Tensor:
        """The trained rows in the place of the base's."""
        slots = self.slots[ids]
        # `clamp_min`, for -1 is no row; what it gives there is not taken
        trained = F.embedding(slots.clamp_min(0), self.rows).to(rows.dtype)
        return torch.where((slots >= 0)[..., None], trained, rows)

    def _scores(self, hidden: Tensor, result: Tensor) -> Tensor:
        bias = weight_view(unwrapped(self.base_layer)).bias
        scores = F.linear(hidden, self.rows.to(hidden.dtype), None if bias is None else bias[self.ids])
        # written over, not added: these rows stand in the place of the base's
        return result.index_copy(-1, self.ids, scores.to(result.dtype))

    def tensors(self) -> dict[str, Tensor]:
        return {ROWS: self.rows} if self.owns_rows else {}

    @torch.no_grad()
    def initialise(self, context: InitContext) -> None:
        view = weight_view(unwrapped(self.base_layer))
        self.rows.copy_(view.dense(view.dtype)[self.ids])

    def merged(self) -> dict[str, Tensor]:
        """The table with the trained rows in it."""
        weight = weight_view(unwrapped(self.base_layer)).dense().clone()
        weight[self.ids] = self.rows.detach().float()
        return {"weight": weight}


def paths_of_weight(model: nn.Module, path: str) -> list[str]:
    """Paths of every module whose `weight` is the very tensor of the one at `path`, itself included."""
    modules = dict(named_base_modules(model))
    weight = modules[path]._parameters.get("weight")
    # `is ... is not None`: a module without a weight shares nothing
    return [other for other, module in modules.items() if module._parameters.get("weight") is weight is not None]


def input_embedding_path(model: nn.Module) -> str | None:
    """Path of the token embedding, seen through wrappers; None where there is none."""
    embedding = input_embedding(model)
    if embedding is None:
        return None
    return next(path for path, module in named_base_modules(model) if module is unwrapped(embedding))


def token_sites(model: nn.Module, config: LoraConfig) -> tuple[dict[str, list[int]], list[str]]:
    """Tokens to train by the path of their table, and the paths that share the rows of the input embedding."""
    wanted = _token_paths(model, config)
    return wanted, _sharing_table(model, wanted, config)


def _sharing_table(model: nn.Module, wanted: Mapping[str, list[int]], config: LoraConfig) -> list[str]:
    """Where the rows of the input embedding must stand too: modules that read the same table (output embedding,
    encoder and decoder), unless they are named with other tokens of their own."""
    path = input_embedding_path(model)
    if path is None or path not in wanted:
        return []
    others = [other for other in paths_of_weight(model, path) if other != path]
    odd = [other for other in others if wanted.get(other, wanted[path]) != wanted[path]]
    if odd and config.ensure_weight_tying:
        raise AdapterError(
            f"trainable_token_indices gives `{path}` and {', '.join(odd)} different tokens, and ensure_weight_tying "
            "wants them to be one table",
            fix="give them the same tokens, or leave ensure_weight_tying at false",
        )
    return [other for other in others if other not in odd]


def _token_paths(model: nn.Module, config: LoraConfig) -> dict[str, list[int]]:
    wanted = config.trainable_token_indices
    if not wanted:
        return {}
    if not isinstance(wanted, dict):
        path = input_embedding_path(model)
        if path is None:
            raise AdapterError("trainable_token_indices needs a model with a token embedding")
        return {path: wanted}
    modules = dict(named_base_modules(model))
    found: dict[str, list[int]] = {}
    for name, indices in wanted.items():
        paths = [path for path in modules if path and names_path(name, path)]
        if not paths:
            raise AdapterError(f"trainable_token_indices names `{name}`, which this model does not have")
        found |= dict.fromkeys(paths, indices)
    return found
