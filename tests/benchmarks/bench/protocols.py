"""The protocols: what is trained, on which rows, and which arms take part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

LORA: dict[str, Any] = {"type": "lora", "r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
PEFT_ARMS = ("peft-default", "peft-best")


@dataclass(frozen=True)
class Arm:
    """One way to train. `peer`: whose environment it runs in, None for ours; `order`: see `items_in_order`."""

    script: str
    peer: str | None = None
    best: bool = False
    order: str = "given"
    overrides: tuple[str, ...] = ()
    """Recipe keys of an arm of ours."""


ARMS = {
    "peftcli": Arm("ours.py"),
    "peftcli-packed": Arm("ours.py", overrides=("data.packing=true",)),
    "peft-default": Arm("peft_trainer.py", "peft", order="own"),
    # what grouping by length is worth, it gets by our order, which groups rows as well
    "peft-best": Arm("peft_trainer.py", "peft", best=True),
    "trl-best": Arm("trl_sft.py", "trl", best=True),
}


@dataclass(frozen=True)
class Protocol:
    """One comparison. `row_tokens`: rows of exactly this length; None: instruction rows with masked prompts."""

    name: str
    about: str
    method: dict[str, Any]
    batch_rows: int = 8
    row_tokens: int | None = None
    dtype: str = "bfloat16"
    arms: tuple[str, ...] = PEFT_ARMS
    """The peers' arms; ours takes part in each."""
    steps: int = 16
    learning_rate: float = 1e-4

    @property
    def max_length(self) -> int:
        return self.row_tokens or 256

    def recipe(self, base: str, rows: str, *, steps: int, dtype: str, threads: int) -> dict[str, Any]:
        """What peftcli is given; everything that speed hangs on and that the peers get too is stated."""
        data = {"train": rows, "validation": 0, "max_length": self.max_length, "truncation": "drop"}
        if self.row_tokens is not None:
            data |= {"truncation": "auto", "format": "text", "append_eos": False}
        return {
            "model": {"base": base, "dtype": dtype},
            "device": "cpu",
            "threads": threads,
            "data": data,
            "method": self.method,
            "training": {
                "max_steps": steps,
                "batch_size": self.batch_rows,
                "micro_batch_size": self.batch_rows,
                "learning_rate": self.learning_rate,
                "scheduler": "constant",
                "warmup_steps": 0,
                "precision": "auto" if dtype == "bfloat16" else "fp32",
            },
            "checkpoint": {"every": None, "best": None},
        }


_METHODS: dict[str, tuple[dict[str, Any], float]] = {
    "dora": ({**LORA, "use_dora": True}, 1e-4),
    # in bfloat16 a smaller rate would not move the output within the few steps of a round
    "ia3": (
        {"type": "ia3", "target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
        5e-3,
    ),
    "prefix-tuning": ({"type": "prefix_tuning", "num_virtual_tokens": 20}, 1e-2),
}
"""Sections, with the rate of all arms."""

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "instruction", "LoRA on instruction rows, prompts masked, 8 rows of at most 256 tokens", LORA, steps=24
        ),
        Protocol(
            "packed",
            "LoRA on instruction rows, packed on both sides, 16 rows of at most 256 tokens",
            LORA,
            batch_rows=16,
            arms=("peftcli-packed", "trl-best"),
            steps=16,
        ),
        Protocol("8x256", "LoRA on 8 rows of 256 tokens", LORA, row_tokens=256),
        Protocol("2x256", "LoRA on 2 rows of 256 tokens", LORA, batch_rows=2, row_tokens=256, steps=24),
        Protocol("16x512", "LoRA on 16 rows of 512 tokens", LORA, batch_rows=16, row_tokens=512, steps=8),
        Protocol("float32", "LoRA on 8 rows of 256 tokens, all in float32", LORA, row_tokens=256, dtype="float32"),
        *(
            Protocol(
                name,
                f"{name} on 8 rows of 256 tokens",
                method,
                row_tokens=256,
                arms=("peft-default",),
                learning_rate=rate,
            )
            for name, (method, rate) in _METHODS.items()
        ),
    )
}
QUICK = ("instruction", "8x256")
"""What `make bench` runs when nothing is named: a few minutes."""
