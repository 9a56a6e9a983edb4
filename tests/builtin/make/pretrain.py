"""Trains the base `builtin:tiny` from nothing on lessons drawn without end from the grammar, with a fixed seed.

    python tests/builtin/make/pretrain.py [--output FOLDER] [--steps N] [--threads N]

The shipped files are pinned by hash; another machine gets another model of the same quality. Training begins with
echoes of random tokens, until copying is learnt. Matrices are trained by Muon (orthogonalised momentum), embeddings and
norms by AdamW; the rate falls along a cosine to nothing. Every 16th batch is packed into long rows, so that the whole
context is trained; the others are rows of like length, each alone.
"""

from __future__ import annotations

import argparse
import collections
import ctypes
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from lessons import LESSONS, Lesson, lesson
from tokenizers import Tokenizer
from train_tokenizer import PACKAGE_FOLDER
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

SEED = 7
CONTEXT = 1024
BATCH_TOKENS = 2048
POOL_ROWS = 512
PACKED_EVERY = 16
PACKED_LENGTH = 512
ECHO_EVERY = 16
ECHO_STEPS = 300
LOOK_BACK_PAIRS = 4
LOOK_BACK_SIZE = 1.3
USER_WEIGHT = 0.25
STORY_WEIGHT = 0.5


@dataclass(frozen=True)
class Row:
    """Token ids of one document and the weight of each as a target."""

    ids: list[int]
    weights: list[float]


class Encoder:
    """Turns lessons into rows, as the chat template writes them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.bos, self.end, self.pad = (self._id(f"<|{name}|>") for name in ("bos", "end", "pad"))
        self.roles = {role: self._id(f"<|{role}|>") for role in ("system", "user", "assistant")}

    def _id(self, token: str) -> int:
        return int(self.tokenizer.token_to_id(token))

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def row(self, made: Lesson) -> Row:
        if isinstance(made, str):
            ids = [*self.ids(made), self.end]
            return Row(ids, [STORY_WEIGHT] * len(ids))
        ids, weights = [self.bos], [0.0]
        for message in made:
            body = [*self.ids(message["content"]), self.end]
            ids += [self.roles[message["role"]], *body]
            # the role is the template's to write, not the model's to guess
            weights += [0.0, *[1.0 if message["role"] == "assistant" else USER_WEIGHT] * len(body)]
        return Row(ids, weights)


def pool(rng: random.Random, encoder: Encoder) -> list[list[Row]]:
    """Batches of rows of like length, in random order."""
    rows = sorted((encoder.row(lesson(rng)) for _ in range(POOL_ROWS)), key=lambda row: len(row.ids))
    batches: list[list[Row]] = [[]]
    for row in rows:
        if (len(batches[-1]) + 1) * len(row.ids) > BATCH_TOKENS:
            batches.append([])
        batches[-1].append(row)
    order = sorted(range(len(batches)), key=lambda _: rng.random())
    return [batches[index] for index in order]


def packed(rng: random.Random, encoder: Encoder, length: int) -> list[Row]:
    """Rows of exactly `length` tokens, documents one after another."""
    rows = []
    for _ in range(BATCH_TOKENS // length):
        ids: list[int] = []
        weights: list[float] = []
        while len(ids) < length:
            made = encoder.row(lesson(rng))
            ids, weights = ids + made.ids, weights + made.weights
        rows.append(Row(ids[:length], weights[:length]))
    return rows


def echoes(rng: random.Random, vocabulary: int, first: int) -> list[Row]:
    """Random tokens said three times, the first time untrained: nothing but copying helps, for every token alike."""
    length = 6 + int(rng.random() * 14)
    rows = []
    for _ in range(BATCH_TOKENS // (3 * length)):
        ids = [first + int(rng.random() * (vocabulary - first)) for _ in range(length)]
        rows.append(Row(ids * 3, [0.0] * length + [1.0] * (2 * length)))
    return rows


def batches(rng: random.Random, encoder: Encoder, steps: int) -> Iterator[list[Row]]:
    """`steps` batches: echoes first, then lessons with an echo and a packed batch now and then."""
    vocabulary, first = encoder.tokenizer.get_vocab_size(), max(encoder.roles.values()) + 1
    count = min(ECHO_STEPS, steps)
    for _ in range(count):
        yield echoes(rng, vocabulary, first)
    while count < steps:
        for rows in pool(rng, encoder)[: steps - count]:
            count += 1
            if count % PACKED_EVERY == 0:
                yield packed(rng, encoder, CONTEXT if count % (4 * PACKED_EVERY) == 0 else PACKED_LENGTH)
            elif count % ECHO_EVERY == ECHO_EVERY // 2:
                yield echoes(rng, vocabulary, first)
            else:
                yield rows


def tensors(rows: Sequence[Row], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and target weights, (rows, longest); padded at the right with weight nought."""
    longest = max(len(row.ids) for row in rows)
    ids = torch.tensor([row.ids + [pad] * (longest - len(row.ids)) for row in rows])
    weights = torch.tensor([row.weights + [0.0] * (longest - len(row.ids)) for row in rows])
    return ids, weights


def new_model(vocabulary: int, encoder: Encoder) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=encoder.bos,
        eos_token_id=encoder.end,
        pad_token_id=encoder.pad,
        # biases stay at zero here: they are there for the methods that train biases
        attention_bias=True,
        mlp_bias=True,
        initializer_range=0.05,
        # faster than sdpa on short rows
        attn_implementation="eager",
    )
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(config)
    for name, tensor in model.named_parameters():
        tensor.requires_grad_(not name.endswith("bias"))
    look_back(model)
    return model


@torch.no_grad()
def look_back(model: LlamaForCausalLM) -> None:
    """Starts two heads of the first layer as heads that look one and two tokens back.

    Copying needs a head that knows which token stood before each token; found by chance that takes most of a training
    of this size, given at the start a few hundred steps. The last coordinate of all embeddings is made constant (with
    tied embeddings that shifts all logits alike), so that query and key can hold a fixed vector; the rotary embedding
    turns it by the position, and the query's is turned back by the distance to look.
    """
    config = model.config
    embeddings = model.model.embed_tokens.weight
    embeddings.normal_(0, 0.02)
    embeddings[:, -1] = 0.01 * config.hidden_size**0.5
    attention = model.model.layers[0].self_attn
    half = config.head_dim // 2
    turns = config.rope_parameters["rope_theta"] ** (-torch.arange(LOOK_BACK_PAIRS) / half)
    for head, distance in enumerate((1, 2)):
        query = attention.q_proj.weight[head * config.head_dim : (head + 1) * config.head_dim, -1]
        query.zero_()
        query[:LOOK_BACK_PAIRS] = LOOK_BACK_SIZE * torch.cos(-distance * turns)
        query[half : half + LOOK_BACK_PAIRS] = LOOK_BACK_SIZE * torch.sin(-distance * turns)
    key = attention.k_proj.weight[: config.head_dim, -1]
    key.zero_()
    key[:LOOK_BACK_PAIRS] = LOOK_BACK_SIZE


def shifted_losses(
    model: LlamaForCausalLM, ids: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Losses, weights and hits of the weighted targets, (targets,)."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        chosen = weights[:, 1:] > 0
        logits = model.lm_head(hidden[chosen]).float()
    targets = ids[:, 1:][chosen]
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    return losses, weights[:, 1:][chosen], logits.argmax(-1) == targets


def accuracies(model: LlamaForCausalLM, encoder: Encoder, rows: int = 48) -> dict[str, float]:
    """Per kind of lesson, the share of the assistant's tokens that are guessed right when all before are given."""
    rng = random.Random(SEED + 1)
    hits: dict[str, float] = collections.OrderedDict()
    model.eval()
    for _, make in LESSONS:
        made: Callable[[random.Random], Lesson] = make
        ids, weights = tensors([encoder.row(made(rng)) for _ in range(rows)], encoder.pad)
        with torch.no_grad():
            _, target_weights, right = shifted_losses(model, ids, weights)
        counted = target_weights >= STORY_WEIGHT
        hits[make.__name__] = float(right[counted].float().mean())
    model.train()
    return hits


def optimizers(model: LlamaForCausalLM, rate: float) -> list[torch.optim.Optimizer]:
    trained = [(name, tensor) for name, tensor in model.named_parameters() if tensor.requires_grad]
    matrices = [tensor for name, tensor in trained if tensor.ndim == 2 and "embed" not in name]
    others = [tensor for name, tensor in trained if tensor.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def rate_share(step: int, steps: int, warmup: int = 100) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def fit(
    model: LlamaForCausalLM, encoder: Encoder, *, steps: int, rate: float, every: int, keep: Callable[[], None]
) -> None:
    """Trains in place; every `every` steps it prints a line and calls `keep`."""
    rng = random.Random(SEED)
    steppers = optimizers(model, rate)
    started, tokens, mean = time.monotonic(), 0, 0.0
    for step, rows in enumerate(batches(rng, encoder, steps)):
        for stepper in steppers:
            for group in stepper.param_groups:
                group["lr"] = rate * rate_share(step, steps)
        ids, weights = tensors(rows, encoder.pad)
        losses, target_weights, _ = shifted_losses(model, ids, weights)
        loss = (losses * target_weights).sum() / target_weights.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepper in steppers:
            stepper.step()
            stepper.zero_grad()
        tokens += ids.numel()
        mean = 0.98 * mean + 0.02 * loss.item()
        if (step + 1) % every == 0 or step + 1 == steps:
            shares = " ".join(f"{name} {share:.3f}" for name, share in accuracies(model, encoder).items())
            seconds = time.monotonic() - started
            corrected = mean / (1 - 0.98 ** (step + 1))
            print(f"step {step + 1} loss {corrected:.4f} tokens {tokens} seconds {seconds:.0f} | {shares}", flush=True)
            keep()


def save(model: LlamaForCausalLM, encoder: Encoder, output: Path) -> None:
    model.generation_config = GenerationConfig(
        bos_token_id=encoder.bos, eos_token_id=encoder.end, pad_token_id=encoder.pad, max_new_tokens=64, do_sample=False
    )
    model.save_pretrained(output)
    (output / "model.safetensors").chmod(0o644)


def keep_freed_memory() -> None:
    """Tells glibc to keep freed blocks: tensors of ever new shapes would else be page faults, a third of the time."""
    libc = ctypes.CDLL(None)
    trim_threshold, mmap_threshold = -1, -3
    libc.mallopt(mmap_threshold, 1 << 30)
    libc.mallopt(trim_threshold, (1 << 31) - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=PACKAGE_FOLDER)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--rate", type=float, default=1e-2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--every", type=int, default=200)
    chosen = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(chosen.threads)
    encoder = Encoder(Tokenizer.from_file(str(PACKAGE_FOLDER / "tokenizer.json")))
    model = new_model(encoder.tokenizer.get_vocab_size(), encoder)
    print(f"{model.num_parameters()} parameters", flush=True)
    fit(
        model,
        encoder,
        steps=chosen.steps,
        rate=chosen.rate,
        every=chosen.every,
        keep=lambda: save(model, encoder, chosen.output),
    )


if __name__ == "__main__":
    main()
