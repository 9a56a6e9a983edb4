"""Speed and memory of preparing data, against the bare Rust tokenizer in the same run."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from peftcli.data.config import DataConfig
from peftcli.data.prepare import prepare

pytestmark = pytest.mark.slow
WORDS = 4000


@pytest.fixture(scope="module")
def speech() -> Any:
    """Sentences out of made-up words, so that no two rows are alike."""
    draw = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgkqjxz"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(WORDS)]
    return lambda count: " ".join(draw.choices(words, k=count))


def _rate(texts: list[str], tokenizer: Any) -> float:
    began = time.perf_counter()
    tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    return time.perf_counter() - began


@pytest.mark.parametrize(("kind", "wanted"), [("text", 0.9), ("pairs", 0.9), ("chat", 0.4)])
def test_preparing_keeps_up_with_the_bare_tokenizer(
    tmp_path: Path, ground: Path, speech: Any, template_of: Any, kind: str, wanted: float
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ground / "models" / "bpe8k")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template_of("chatml")
    if kind == "text":
        rows: list[Any] = [{"text": speech(150)} for _ in range(8000)]
        texts = [row["text"] for row in rows]
    elif kind == "pairs":
        rows = [{"prompt": speech(60), "completion": " " + speech(60)} for _ in range(10000)]
        texts = [row["prompt"] + row["completion"] for row in rows]
    else:
        roles = ("user", "assistant")
        rows = [{"messages": [{"role": roles[at % 2], "content": speech(50)} for at in range(6)]} for _ in range(4000)]
        texts = [tokenizer.apply_chat_template(row["messages"], tokenize=False) for row in rows]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ratios = []
    for _ in range(4):
        bare = _rate(texts, tokenizer)
        began = time.perf_counter()
        config = DataConfig(train="rows.jsonl", max_length=4096, validation=0)
        prepare(config, tokenizer=tokenizer, folder=tmp_path, seed=0)
        ratios.append(bare / (time.perf_counter() - began))
    print(f"{kind}: {max(ratios):.2f} of the bare tokenizer (runs: {', '.join(f'{ratio:.2f}' for ratio in ratios)})")
    assert max(ratios) >= wanted


MEASURED = """
import sys, time
from pathlib import Path
from transformers import AutoTokenizer
from peftcli.data.config import DataConfig
from peftcli.data.prepare import prepare
tokenizer = AutoTokenizer.from_pretrained(sys.argv[2])
folder = Path(sys.argv[1])
began = time.perf_counter()
data = prepare(DataConfig(train="rows.jsonl", max_length=512, validation=0), tokenizer=tokenizer, folder=folder, seed=0,
               cache_dir=folder / "cache")
seconds = time.perf_counter() - began
# ru_maxrss would count the parent's memory before exec
(peak,) = [int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith("VmHWM")]
print(seconds, peak >> 10, data.facts.cached)
"""


def test_200000_short_rows_fit_a_gibibyte_and_start_again_within_a_second(
    tmp_path: Path, ground: Path, speech: Any
) -> None:
    with (tmp_path / "rows.jsonl").open("w") as stream:
        for _ in range(200_000):
            stream.write(json.dumps({"text": speech(8)}) + "\n")
    command = [sys.executable, "-c", MEASURED, str(tmp_path), str(ground / "models" / "bpe8k")]
    seconds, mebibytes, cached = zip(
        *(map(float, subprocess.check_output(command, text=True).split()) for _ in range(3)), strict=True
    )
    print(f"first {seconds[0]:.1f} s, then {min(seconds[1:]):.2f} s; at most {max(mebibytes):.0f} MiB")
    assert cached == (0, 1, 1)
    assert max(mebibytes) < 1024
    assert min(seconds[1:]) < 1
