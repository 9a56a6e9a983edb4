"""Prompts for the proof of a merge: texts, and rows of tokens that meet what the adapter changed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from peftcli.adapters.layers import AdapterLayer, unwrapped
from peftcli.data.asking import token_ids
from peftcli.evaluation.generate import context_length
from peftcli.models.calling import token_inputs
from peftcli.models.structure import input_embedding, output_embedding

PROMPT_TOKENS = 64
JOINED_TOKENS = 16
CHANGED_TOKENS = 256
"""At most so many tokens whose rows were trained are put into prompts, spread evenly over all of them."""
LONGEST = 2048
RANDOM_ROWS = 8
"""At most so many rows of random tokens are added to reach experts and layers that no other prompt reaches."""
_CHUNK = 4096


def encode_prompts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], device: str) -> list[Tensor]:
    """Each text as its own unpadded row (1, length). Cut here: the tokenizer would remember that it was asked to cut."""
    rows = [token_ids(tokenizer, text)[:PROMPT_TOKENS] for text in texts]
    return [torch.tensor([row or [tokenizer.eos_token_id or 0]], device=device) for row in rows]


def joined(rows: Sequence[Tensor], tokens: int) -> list[Tensor]:
    """The beginnings of all rows, joined and cut to rows of one length, in one batch (rows, length) of about as many
    tokens as are asked for: a model that is read anew for each batch is read once for all."""
    share = max(1, -(-tokens // len(rows)))
    every = torch.cat([row[0, :share] for row in rows])
    length = min(len(every), JOINED_TOKENS)
    return [every[: len(every) // length * length].reshape(-1, length)]


def _run(model: nn.Module, row: Tensor) -> None:
    model(**token_inputs(model, row))


def meeting_rows(
    model: nn.Module,
    sites: dict[str, nn.Module],
    rows: Sequence[Tensor],
    *,
    together: bool = False,
    run: Callable[[nn.Module, Tensor], object] = _run,
) -> tuple[list[Tensor], list[str]]:
    """The rows and what must be added so that a prompt meets every token row, position and expert that was changed.

    `together`: what is added comes in few batches. `run` asks the model, once for each row. Also the paths of what no
    prompt met: it can be checked on the weights only.
    """
    device = rows[0].device
    found = [*rows, *_token_rows(changed_tokens(model), device)]
    vocabulary = _vocabulary(model)
    # a fixed seed: a merge that is tried again meets the same prompts
    generator = torch.Generator().manual_seed(0)
    limit = context_length(model)
    # learned positions beyond the short prompts are met by one long row only
    if limit is not None and _has_position_table(model, sites):
        found.append(torch.randint(vocabulary, (1, min(limit, LONGEST)), generator=generator).to(device))
    with _Meetings(sites) as meetings, torch.no_grad():
        for row in found:
            run(model, row)
        # few rows, for an expert that random tokens do not reach in eight may never be reached
        count = RANDOM_ROWS if together else 1
        for _ in range(RANDOM_ROWS // count):
            if not meetings.unmet():
                break
            row = torch.randint(vocabulary, (count, min(limit or PROMPT_TOKENS, PROMPT_TOKENS)), generator=generator)
            found.append(row.to(device))
            run(model, found[-1])
    return found, meetings.unmet()


def changed_tokens(model: nn.Module) -> list[int]:
    """Tokens whose embedding the adapter changes, in order."""
    embedding = input_embedding(model)
    if not isinstance(embedding, AdapterLayer):
        return []
    count = _vocabulary(model)
    device = next(embedding.parameters()).device
    found: list[int] = []
    with torch.no_grad():
        for start in range(0, count, _CHUNK):
            # in chunks: a whole vocabulary of states may be gigabytes
            ids = torch.arange(start, min(start + _CHUNK, count), device=device)
            differs = (embedding(ids) != unwrapped(embedding)(ids)).flatten(1).any(1)
            found += ids[differs].tolist()
    return found


def _token_rows(tokens: Sequence[int], device: torch.device) -> list[Tensor]:
    # spread evenly, as a vocabulary is in no order of importance
    step = max(1, -(-len(tokens) // CHANGED_TOKENS))
    chosen = torch.tensor(list(tokens)[::step], dtype=torch.long, device=device)
    return [part[None] for part in chosen.split(PROMPT_TOKENS)] if len(chosen) else []


def _vocabulary(model: nn.Module) -> int:
    embedding = input_embedding(model)
    rows = None if embedding is None else getattr(unwrapped(embedding), "num_embeddings", None)
    return int(rows if rows is not None else model.config.get_text_config().vocab_size)  # type: ignore[union-attr, operator]


def _has_position_table(model: nn.Module, sites: dict[str, nn.Module]) -> bool:
    """Whether a table other than that of the tokens was adapted, by itself or in a part that was trained whole."""
    tokens = {id(unwrapped(found)) for found in (input_embedding(model), output_embedding(model)) if found is not None}
    parts = [part for site in sites.values() for part in unwrapped(site).modules()]
    return any(isinstance(part, nn.Embedding) and id(part) not in tokens for part in parts)


class _Meetings:
    """Which adapted modules, and which experts inside them, a forward pass has reached."""

    def __init__(self, sites: dict[str, nn.Module]) -> None:
        self.waiting: dict[str, set[int]] = {path: _experts(unwrapped(site)) for path, site in sites.items()}
        self._sites = sites
        self._handles = contextlib.ExitStack()

    def __enter__(self) -> _Meetings:
        for path, site in self._sites.items():
            handle = unwrapped(site).register_forward_pre_hook(self._hook(path), with_kwargs=True)
            self._handles.callback(handle.remove)
        return self

    def __exit__(self, *raised: object) -> None:
        self._handles.close()

    def unmet(self) -> list[str]:
        return list(self.waiting)

    def _hook(self, path: str) -> Any:
        several = len(self.waiting[path]) > 1

        def met(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            waiting = self.waiting.get(path)
            if waiting is None:
                return
            # of a module with one part they are ids of tokens, or whatever else
            chosen = list(_whole_numbers(args, kwargs)) if several else []
            # without numbers of experts among its arguments the module runs all of them
            waiting -= set(torch.cat(chosen).tolist()) if chosen else set(waiting)
            if not waiting:
                del self.waiting[path]

        return met


def _experts(base: nn.Module) -> set[int]:
    """Numbers of the experts whose matrices lie in one tensor; a module without such has a single part."""
    counts = {parameter.shape[0] for parameter in base.parameters(recurse=False) if parameter.dim() == 3}
    # a module without fused weights counts as one expert
    return set(range(max(counts, default=1)))


def _whole_numbers(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor) and value.dtype in (torch.int32, torch.int64) and value.dim() > 0:
            yield value.flatten()
