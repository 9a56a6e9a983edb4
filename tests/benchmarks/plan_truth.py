"""Plan against truth on the CPU: predicted and measured peak memory of short trainings, above the loaded process.

    python tests/benchmarks/plan_truth.py [--write] [NAME ...]     # quantized rows need bitsandbytes

Each row is a training of two steps in a process of its own, on a Llama of random weights. Measured is the most that was
resident (VmHWM of Linux) less what was resident once everything was imported; predicted is the plan's peak less what it
takes for the framework. Exit code 10 where one is more than 15 % off.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import multiprocessing
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from peftcli.models.builtin import builtin_base
from peftcli.models.quantization import import_library
from peftcli.planning.memory import FRAMEWORK_BYTES
from peftcli.run import train

TABLE = Path(__file__).with_name("plan_truth.txt")
BOUND = 0.15
MIB = 1 << 20
SHAPE: dict[str, Any] = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 6, "num_attention_heads": 8,
                         "num_key_value_heads": 4, "max_position_embeddings": 2048}  # fmt: skip
LORA: dict[str, Any] = {"type": "lora", "r": 16}


def case(
    method: dict[str, Any], length: int, rows: int, *, micro: int | None = None, vocabulary: int = 8192,
    dtype: str = "float32", checkpointing: bool | int = False, quantization: str | None = None, kernels: Any = "off",
) -> dict[str, Any]:  # fmt: skip
    """A recipe in few words."""
    return {
        "vocabulary": vocabulary,
        "recipe": {
            "model": {"dtype": dtype, "quantization": quantization},
            "data": {"validation": None, "max_length": length, "truncation": "right", "checks": {"duplicates": "off"}},
            "method": method,
            "training": {
                "batch_size": rows, "micro_batch_size": micro or rows, "max_steps": 2, "kernels": kernels,
                "gradient_checkpointing": checkpointing,
            },
            "threads": 1,
        },
    }  # fmt: skip


WIDE = 65536
CASES = {
    "lora": case(LORA, 512, 2),
    "lora, long": case(LORA, 1024, 1),
    "lora, four rows": case(LORA, 256, 4),
    "lora, micro-batches of one": case(LORA, 512, 4, micro=1),
    "lora, checkpointing": case(LORA, 512, 2, checkpointing=True),
    "lora, every second layer": case(LORA, 512, 2, checkpointing=2),
    "lora, vocabulary": case(LORA, 512, 2, vocabulary=WIDE),
    "lora, vocabulary and checkpointing": case(LORA, 1024, 1, vocabulary=WIDE, checkpointing=True),
    "lora, bf16": case(LORA, 512, 2, dtype="bfloat16"),
    "lora, bf16, checkpointing": case(LORA, 512, 2, dtype="bfloat16", checkpointing=True),
    "lora, bf16, vocabulary": case(LORA, 512, 2, dtype="bfloat16", vocabulary=WIDE),
    "lora, fast paths": case(LORA, 512, 2, kernels="auto"),
    "lora, bf16, fast paths": case(LORA, 512, 2, dtype="bfloat16", kernels="auto"),
    "lora of rank 128": case({"type": "lora", "r": 128}, 512, 2),
    "dora": case({"type": "dora", "r": 16}, 512, 2),
    "dora, checkpointing": case({"type": "dora", "r": 16}, 512, 2, checkpointing=True),
    "ia3": case({"type": "ia3"}, 512, 2),
    "vera": case({"type": "vera"}, 512, 2),
    "bottleneck": case({"type": "bottleneck"}, 512, 2),
    "prefix_tuning": case({"type": "prefix_tuning"}, 512, 2),
    "prompt_tuning": case({"type": "prompt_tuning"}, 512, 2),
    "bitfit": case({"type": "ln_tuning"}, 512, 2),
    "full": case({"type": "full"}, 256, 2),
    "full, checkpointing": case({"type": "full"}, 512, 2, checkpointing=True),
    "full, vocabulary": case({"type": "full"}, 256, 1, vocabulary=WIDE),
    "lora, nf4": case(LORA, 512, 2, dtype="bfloat16", quantization="nf4"),
    "lora, nf4, checkpointing": case(LORA, 512, 2, dtype="bfloat16", quantization="nf4", checkpointing=True),
    "lora, int8": case(LORA, 512, 2, dtype="bfloat16", quantization="int8"),
}


def resident(name: str) -> int:
    """A figure of this process's memory, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


def write_base(folder: Path, vocabulary: int) -> None:
    """A Llama of random weights with the tokenizer of the built-in base."""
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, tie_word_embeddings=False, **SHAPE)).save_pretrained(folder)
    for part in builtin_base("tiny").glob("tokenizer*"):
        (folder / part.name).write_bytes(part.read_bytes())


def write_recipe(name: str, folder: Path) -> Path:
    """The recipe of a case, with rows longer than any of them takes."""
    words = " ".join(["unabridged"] * 1200)
    row = {"messages": [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": words}]}
    (folder / "rows.jsonl").write_text(f"{json.dumps(row)}\n" * 16, encoding="utf-8")
    recipe = json.loads(json.dumps(CASES[name]["recipe"]))
    recipe["model"]["base"] = str(folder / f"base-{CASES[name]['vocabulary']}")
    recipe["data"]["train"] = str(folder / "rows.jsonl")
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    return path


def in_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a process of its own, which has all imports of this one and nothing that was freed."""
    ours, theirs = multiprocessing.Pipe(duplex=False)

    def told() -> None:
        theirs.send(work(*arguments))

    process = multiprocessing.get_context("fork").Process(target=told)
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        raise SystemExit(f"{arguments[0]}: the training failed") from None
    finally:
        process.join()


def imported_by_training(folder: Path) -> list[str]:
    """What a training imports beside what is imported now."""
    before = set(sys.modules)
    recipe = {"model": "builtin:tiny", "data": "builtin:support", "method": "lora", "training": {"max_steps": 1}}
    (folder / "first.yaml").write_text(json.dumps(recipe | {"threads": 1, "evaluation": {"rows": 2, "samples": 0}}))
    train(folder / "first.yaml", output=folder / "first")
    return sorted(set(sys.modules) - before)


def measure(path: Path, run: Path) -> tuple[float, float]:
    """Bytes that a training was predicted to take, and took, above what is there now."""
    loaded = resident("VmRSS")
    record = train(path, output=run)
    assert record.predicted.peak_memory_bytes is not None
    return record.predicted.peak_memory_bytes - FRAMEWORK_BYTES["cpu"], resident("VmHWM") - loaded


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="cases; default: all that can run here")
    parser.add_argument("--write", action="store_true", help=f"writes {TABLE.name}")
    options = parser.parse_args()
    packs = importlib.util.find_spec("bitsandbytes") is not None
    import_library()
    names = options.names or [n for n in CASES if packs or CASES[n]["recipe"]["model"]["quantization"] is None]
    lines = [f"{'training':<38} {'predicted MiB':>13} {'measured MiB':>12} {'off':>7}"]
    print(lines[0], flush=True)
    errors: list[float] = []
    with tempfile.TemporaryDirectory() as scratch, contextlib.suppress(KeyboardInterrupt):
        # imported before anything is measured: the loaded process is not what the plan is asked about
        for module in in_process(imported_by_training, Path(scratch)):
            with contextlib.suppress(ImportError):
                importlib.import_module(module)
        for vocabulary in sorted({CASES[name]["vocabulary"] for name in names}):
            in_process(write_base, Path(scratch, f"base-{vocabulary}"), vocabulary)
        for number, name in enumerate(names):
            predicted, measured = in_process(measure, write_recipe(name, Path(scratch)), Path(scratch, f"run-{number}"))
            errors.append(predicted / measured - 1)
            lines.append(f"{name:<38} {predicted / MIB:>13.0f} {measured / MIB:>12.0f} {errors[-1]:>+7.1%}")
            print(lines[-1], flush=True)
    within = sum(abs(error) <= BOUND for error in errors)
    lines.append(f"{within} of {len(errors)} within {BOUND:.0%}; the worst {max(errors, key=abs):+.1%}")
    print(lines[-1])
    print(f"resident once everything is imported: {resident('VmRSS') / MIB:.0f} MiB")
    if options.write:
        TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0 if within == len(errors) else 10


if __name__ == "__main__":
    sys.exit(main())
