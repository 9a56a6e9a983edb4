"""Trains the tokenizer of `builtin:tiny`: byte-level BPE with the word pattern of Llama 3, and its chat template.

    python tests/builtin/make/train_tokenizer.py [OUTPUT]

Every piece of a value is shown often enough to become one token, with and without a leading space, so that a value is
made of the same pieces wherever it stands; the check at the end counts the values for which that holds.
"""

from __future__ import annotations

import collections
import json
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from lessons import KEY_WORDS, SYSTEM_LINES, lesson
from tickets import CATEGORIES, URGENCIES
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from values import BRAND_ENDS, BRAND_STARTS, CODE_WORDS, FIRST_NAMES, LAST_NAMES, NOUNS, code, person, product

PACKAGE_FOLDER = Path(__file__).parents[3] / "peftcli" / "models" / "builtin" / "tiny"
VOCABULARY = 1600
SPECIAL_TOKENS = ("<|pad|>", "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
WORD_PATTERN = "|".join(
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role: ' ~ message['role']) }}"
    "{% endif %}"
    "{{ '<|' ~ message['role'] ~ '|>' ~ message['content'] ~ eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
LESSONS_READ = 20_000
PIECE_WEIGHT = 1000
SEED = 11

_BRAND = re.compile(rf"\W?({'|'.join(BRAND_STARTS)})({'|'.join(BRAND_ENDS)})")


def new_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def lesson_texts(count: int) -> Iterator[str]:
    rng = random.Random(SEED)
    yield from SYSTEM_LINES
    for _ in range(count):
        made = lesson(rng)
        if isinstance(made, str):
            yield made
        else:
            yield from (message["content"] for message in made)


def words(texts: Iterator[str]) -> collections.Counter[str]:
    """English words with their leading space or hyphen, without brands and punctuation glued to a letter."""
    splitter = pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated")
    counts: collections.Counter[str] = collections.Counter()
    for text in texts:
        counts.update(word for word, _ in splitter.pre_tokenize_str(text))
    glued = re.compile(r"[^\w\s'-]\w")
    return collections.Counter(
        {word: count for word, count in counts.items() if not glued.match(word) and not _BRAND.fullmatch(word)}
    )


def pieces() -> list[str]:
    """Every piece of a value in each place that it can stand in, a line each."""
    starts = [lead + start for start in FIRST_NAMES + BRAND_STARTS for lead in ("", " ")]
    coded = [lead + word for word in CODE_WORDS for lead in ("", " ", "-")]
    labels = [lead + word for word in (*KEY_WORDS, *CATEGORIES, *URGENCIES) for lead in ("", " ")]
    return [
        *starts,
        *labels,
        *(f" {name}" for name in LAST_NAMES),
        *BRAND_ENDS,
        *coded,
        *(f" {noun}" for noun in NOUNS),
    ]


def training_lines() -> Iterator[str]:
    counts = words(lesson_texts(LESSONS_READ))
    for word, count in sorted(counts.items()):
        yield from [word] * min(count, 300)
    for piece in pieces():
        yield from [piece] * PIECE_WEIGHT


def train() -> Tokenizer:
    tokenizer = new_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_lines(), trainer)
    return tokenizer


def seam_share(tokenizer: Tokenizer, draws: int = 2000) -> float:
    """The share of values whose pieces are the same after a space and after a quotation mark, and as few as planned."""
    rng = random.Random(SEED)
    planned = ((person, 2), (product, 3), (code, 3))
    good = 0
    for index in range(draws):
        make, length = planned[index % 3]
        value = make(rng)
        bare, spaced = (tokenizer.encode(text).tokens for text in (value, " " + value))
        good += len(bare) == length and bare[1:] == spaced[1:] and spaced[0] == "Ġ" + bare[0]
    return good / draws


def tokenizer_config() -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|bos|>",
        "eos_token": "<|end|>",
        "pad_token": "<|pad|>",
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1024,
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "right",
        "chat_template": CHAT_TEMPLATE,
    }


def main() -> None:
    output = Path(sys.argv[1]) if len(sys.argv) > 1 else PACKAGE_FOLDER
    output.mkdir(parents=True, exist_ok=True)
    tokenizer = train()
    tokenizer.save(str(output / "tokenizer.json"))
    text = json.dumps(tokenizer_config(), indent=2) + "\n"
    (output / "tokenizer_config.json").write_text(text, encoding="utf-8")
    print(f"{tokenizer.get_vocab_size()} tokens, {seam_share(tokenizer):.1%} of values in their planned pieces")


if __name__ == "__main__":
    main()
