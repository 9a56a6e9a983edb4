"""How much memory and time a merge takes: a base of random weights in shards, LoRA on every linear layer, merged and proven.

    python tests/benchmarks/merge_memory.py --gib 4 [--type bfloat16] [--shards 8] [--limit-gib 1.2] [--folder DIR]

The shape is that of Llama-3.2-1B (width 2048, 128,256 tokens, tied), with as many layers as make the size. The merge runs
in a process of its own; printed is the most that was resident there, interpreter and libraries included (VmHWM of Linux).
Exit code 10 beyond the limit.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, PreTrainedTokenizerFast

WIDTH, INNER, HEADS, KEYS, VOCABULARY = 2048, 8192, 32, 8, 128256
RANK = 16
GIB = 1 << 30
SHAPES = {
    "self_attn.q_proj": (WIDTH, WIDTH),
    "self_attn.k_proj": (WIDTH // HEADS * KEYS, WIDTH),
    "self_attn.v_proj": (WIDTH // HEADS * KEYS, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH),
    "mlp.gate_proj": (INNER, WIDTH),
    "mlp.up_proj": (INNER, WIDTH),
    "mlp.down_proj": (WIDTH, INNER),
}
MERGE = """
import json, sys, time
import peftcli.jobs.merge, transformers.models.llama.modeling_llama
def resident(name):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(name))
loaded, started = resident("VmRSS"), time.perf_counter()
report = peftcli.jobs.merge.merge_adapter(sys.argv[1], output=sys.argv[2], max_shard_size="1GB",
    say=lambda line: print(line, file=sys.stderr, flush=True))
print(json.dumps({"peak": resident("VmHWM"), "loaded": loaded, "seconds": time.perf_counter() - started,
    "difference": report.max_difference, "tolerance": report.tolerance, "effect": report.adapter_effect,
    "share": report.logits_share, "weights": report.weights, "cpu": time.process_time()}))
"""


def layers_of(gib: float, dtype: torch.dtype) -> int:
    """Layers of a base of about this size."""
    of_layer = sum(rows * columns for rows, columns in SHAPES.values())
    return max(1, round((gib * GIB / dtype.itemsize - VOCABULARY * WIDTH) / of_layer))


def write_base(folder: Path, layers: int, dtype: torch.dtype, shards: int) -> None:
    """Config, tokenizer and weights, one file after the other."""
    folder.mkdir(parents=True)
    LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=layers,
        num_attention_heads=HEADS, num_key_value_heads=KEYS, tie_word_embeddings=True, dtype=str(dtype).split(".")[1],
        architectures=["LlamaForCausalLM"], bos_token_id=256, eos_token_id=257,
    ).save_pretrained(folder)  # fmt: skip
    _tokenizer().save_pretrained(folder)
    weight_map: dict[str, str] = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        tensors = dict(_tensors(range(number * layers // shards, (number + 1) * layers // shards), number == 0, dtype))
        save_file(tensors, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _tensors(layers: Sequence[int], first: bool, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(1 + sum(layers))
    if first:
        yield "model.embed_tokens.weight", _random((VOCABULARY, WIDTH), generator).to(dtype)
        yield "model.norm.weight", torch.ones(WIDTH, dtype=dtype)
    for number in layers:
        for name, shape in SHAPES.items():
            yield f"model.layers.{number}.{name}.weight", _random(shape, generator).to(dtype)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"model.layers.{number}.{name}.weight", torch.ones(WIDTH, dtype=dtype)


def _random(shape: tuple[int, ...], generator: torch.Generator, size: float = 0.02) -> Tensor:
    return size * torch.randn(shape, generator=generator)


def _tokenizer() -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<bos>", eos_token="</s>")


def write_adapter(folder: Path, base: Path, layers: int) -> None:
    """LoRA on every linear layer, as Hugging Face PEFT writes it."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for number in range(layers):
        for name, (rows, columns) in SHAPES.items():
            key = f"base_model.model.model.layers.{number}.{name}"
            tensors[f"{key}.lora_A.weight"] = _random((RANK, columns), generator)
            tensors[f"{key}.lora_B.weight"] = _random((rows, RANK), generator, 0.01)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    targets = [name.split(".")[1] for name in SHAPES]
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base), "r": RANK,
              "lora_alpha": 2 * RANK, "target_modules": targets}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))


def measure(folder: Path, gib: float, dtype: torch.dtype, shards: int) -> dict[str, float]:
    """Writes base and adapter into a folder, merges in another process, and returns what that took."""
    layers, base, adapter = layers_of(gib, dtype), folder / "base", folder / "adapter"
    if not base.exists():
        write_base(base, layers, dtype, shards)
        write_adapter(adapter, base, layers)
    command = [sys.executable, "-c", MERGE, str(adapter), str(folder / f"merged-{time.time_ns()}")]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    size = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    return {"base": size, "layers": layers, **json.loads(done.stdout)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=4.0)
    parser.add_argument("--type", choices=("float32", "bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--limit-gib", type=float, default=1.2)
    parser.add_argument("--folder", type=Path, help="kept, and used again; default: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        found = measure(folder, options.gib, getattr(torch, options.type), options.shards)
    print(json.dumps(found))
    print(
        f"a base of {found['base'] / GIB:.2f} GiB in {options.shards} files: {found['peak'] / GIB:.2f} GiB resident at most "
        f"({found['loaded'] / GIB:.2f} GiB of it the loaded process), {found['seconds']:.0f} s"
    )
    return 0 if found["peak"] <= options.limit_gib * GIB else 10


if __name__ == "__main__":
    sys.exit(main())
