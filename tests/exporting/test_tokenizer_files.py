"""Tokenizer files are the base's own, byte for byte, in every folder that is written: adapter, merged, exported.

Every library writes such files a little differently, and a tokenizer that was written again is one that some server does
not load.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM

import peftcli
from peftcli.exporting.export import export_adapter
from peftcli.jobs.merge import merge_adapter

TEXT = [
    "the quick brown fox jumps over the lazy dog",
    "pack my box with five dozen liquor jugs",
    "naïve café ÜBER 12345",
]
SPECIAL = ["<unk>", "<s>", "</s>"]
NAMED = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
CHAT = "{% for message in messages %}{{ message.role }}: {{ message.content }}</s>\n{% endfor %}"


def byte_level(split: str | None = None) -> Tokenizer:
    found = Tokenizer(models.BPE())
    steps = [] if split is None else [pre_tokenizers.Split(_regex(split), "isolated")]
    found.pre_tokenizer = pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    found.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    found.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    return found


def _regex(text: str) -> object:
    from tokenizers import Regex

    return Regex(text)


def pieces() -> Tokenizer:
    found = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    found.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    found.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    bytes_ = [f"<0x{number:02X}>" for number in range(256)]
    found.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL + bytes_))
    return found


def unigram() -> Tokenizer:
    found = Tokenizer(models.Unigram())
    found.normalizer = normalizers.NFKC()
    found.pre_tokenizer = pre_tokenizers.Metaspace()
    found.decoder = decoders.Metaspace()
    found.train_from_iterator(TEXT, trainers.UnigramTrainer(vocab_size=90, special_tokens=SPECIAL, unk_token="<unk>"))
    found.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", 2)])
    return found


def word_piece() -> Tokenizer:
    found = Tokenizer(models.WordPiece(unk_token="<unk>"))
    found.normalizer = normalizers.BertNormalizer()
    found.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    found.decoder = decoders.WordPiece()
    found.train_from_iterator(TEXT, trainers.WordPieceTrainer(vocab_size=120, special_tokens=SPECIAL))
    return found


def words() -> Tokenizer:
    found = Tokenizer(models.WordLevel(unk_token="<unk>"))
    found.pre_tokenizer = pre_tokenizers.Whitespace()
    found.train_from_iterator(TEXT, trainers.WordLevelTrainer(special_tokens=SPECIAL))
    return found


def characters() -> Tokenizer:
    found = Tokenizer(models.BPE(unk_token="<unk>"))
    found.pre_tokenizer = pre_tokenizers.CharDelimiterSplit(" ")
    found.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=60, special_tokens=SPECIAL))
    return found


def plain_files(folder: Path, tokenizer: Tokenizer, **more: object) -> None:
    """In no spelling that a library writes: keys in another order, other spaces, no line end."""
    document = json.loads(tokenizer.to_str())
    (folder / "tokenizer.json").write_text(json.dumps(dict(reversed(document.items())), separators=(",", " :  ")))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64, **NAMED, "own_field": [1], **more}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=7) + "\n\n")


def with_template(folder: Path) -> None:
    plain_files(folder, byte_level())
    (folder / "chat_template.jinja").write_text(CHAT + "   \n\n")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}\n")


def with_old_files(folder: Path) -> None:
    tokenizer = byte_level()
    plain_files(folder, tokenizer)
    (folder / "special_tokens_map.json").write_text(json.dumps(NAMED, indent=5))
    (folder / "added_tokens.json").write_text("{}  \n")
    model = json.loads(tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], indent=1))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]) + "\n")


def with_a_model_file(folder: Path) -> None:
    plain_files(folder, pieces())
    (folder / "tokenizer.model").write_bytes(b"\x0a\x0e\x0a\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    (folder / "preprocessor_config.json").write_text('{"do_resize":   true}')


KINDS: dict[str, Callable[[Path], None]] = {
    "bytes": lambda folder: plain_files(folder, byte_level()),
    "bytes after a split": lambda folder: plain_files(folder, byte_level(r"\p{N}{1,3}")),
    "pieces with byte fallback": lambda folder: plain_files(folder, pieces()),
    "unigram": lambda folder: plain_files(folder, unigram()),
    "word pieces": lambda folder: plain_files(folder, word_piece()),
    "words": lambda folder: plain_files(folder, words()),
    "characters": lambda folder: plain_files(folder, characters()),
    "a template in the configuration": lambda folder: plain_files(folder, byte_level(), chat_template=CHAT),
    "templates in files": with_template,
    "files of older releases": with_old_files,
    "a SentencePiece model beside": with_a_model_file,
}


def make_base(folder: Path, kind: str) -> Path:
    folder.mkdir()
    KINDS[kind](folder)
    size = len(Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab())
    config = LlamaConfig(
        vocab_size=size, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, bos_token_id=1,
        eos_token_id=2, pad_token_id=None, max_position_embeddings=64,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "generation_config.json").write_text('{"eos_token_id":   2, "bos_token_id": 1}')
    return folder


def tokenizer_bytes(folder: Path) -> dict[str, bytes]:
    from peftcli.models.companions import tokenizer_files

    return {name: path.read_bytes() for name, path in tokenizer_files(folder).items()}


def require_the_bases_own(kind: str, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", kind)
    own = tokenizer_bytes(base)
    assert len(own) >= 2
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXT))
    recipe = {
        "model": str(base), "data": {"train": "rows.jsonl", "validation": 0, "max_length": 16},
        "method": {"type": "lora", "r": 2, "target_modules": ["q_proj", "v_proj"]}, "threads": 1,
        "training": {"max_steps": 1, "batch_size": 2}, "checkpoint": {"every": None},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    peftcli.train(tmp_path / "recipe.yaml", output=tmp_path / "run")
    merge_adapter(tmp_path / "run", output=tmp_path / "merged")
    for name in ("run/adapter", "merged"):
        assert tokenizer_bytes(tmp_path / name) == own, name
        assert (tmp_path / name / "generation_config.json").read_bytes() == (
            base / "generation_config.json"
        ).read_bytes()
    for to in ("peft", "adapterhub", "mlx"):
        export_adapter(tmp_path / "run", to=to, output=tmp_path / to)
        found = tokenizer_bytes(tmp_path / to)
        assert found == own if to == "peft" else found in ({}, own), to


@pytest.mark.parametrize("kind", ["bytes", "templates in files"])
def test_the_bases_own_files(kind: str, tmp_path: Path) -> None:
    require_the_bases_own(kind, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("bytes", "templates in files")])
def test_the_bases_own_files_of_every_kind(kind: str, tmp_path: Path) -> None:
    require_the_bases_own(kind, tmp_path)
