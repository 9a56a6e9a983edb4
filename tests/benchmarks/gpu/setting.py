"""What a part is given, and what the parts share: commands run in this process, recipes, checks."""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BASE = "builtin:tiny"


def _keep_silent(figures: dict[str, Any]) -> None:
    """Nobody asked for figures."""


@dataclass
class Setting:
    """Where a part runs, how large, and where it tells its figures. `folder` is empty and its own."""

    device: str
    tiny: bool
    folder: Path
    tell: Callable[[dict[str, Any]], None] = _keep_silent
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    def note(self, **figures: Any) -> None:
        """Keeps figures, at once: whatever happens later does not take them back."""
        self.figures |= figures
        self.tell(self.figures)

    def recipe(self, name: str = "job", **sections: Any) -> Path:
        """Writes a recipe for this device; sections are merged over a small job on what ships with the package, None
        takes one out."""
        document: dict[str, Any] = {
            "model": {"base": BASE},
            "device": self.device,
            "threads": 1,
            "data": {"train": {"path": "builtin:support", "rows": 64}, "validation": 8, "max_length": 256},
            "method": {"type": "lora", "r": 8, "target_modules": "all-linear", "lora_dropout": 0.1},
            "training": {"max_steps": 6, "batch_size": 8, "micro_batch_size": 4, "learning_rate": 2e-3},
            "evaluation": {"every": 3, "samples": 1, "rows": 8},
            "generation": {"max_new_tokens": 8},
            "checkpoint": {"every": 2, "keep": 3},
        }
        for section, fields in sections.items():
            both = isinstance(document.get(section), dict) and isinstance(fields, dict)
            document[section] = {**document[section], **fields} if both and "type" not in fields else fields
            if fields is None:
                del document[section]
        path = self.folder / f"{name}.yaml"
        path.write_text(json.dumps(document), encoding="utf-8")  # JSON is YAML
        return path


def require(holds: bool, message: str) -> None:
    """A check of a part: its message is what the table shows."""
    if not holds:
        raise AssertionError(message)


def peft(*arguments: object, code: int = 0) -> dict[str, Any]:
    """Runs one command in this process and returns its JSON; fails where it ends otherwise than with `code`."""
    from peftcli.cli.entry import run

    words = [*map(str, arguments), "--json"]
    out, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
        found = run(words)
    told = f"{said.getvalue()[-400:]} {out.getvalue()[-400:] if found else ''}"
    require(found == code, f"`peft {' '.join(words)}` ended with {found}, not {code}: {told}")
    return dict(json.loads(out.getvalue())) if out.getvalue().strip() else {}


def train(recipe: Path, output: Path, *more: object, code: int = 0) -> dict[str, Any]:
    """`peft train`; the record that it left in the run folder."""
    peft("train", recipe, "--output", output, "--quiet", *more, code=code)
    return record_of(output)


def record_of(run: Path) -> dict[str, Any]:
    path = run / "run.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    """Lines of a kind in `metrics.jsonl`; of several for one step the last."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return list({line["step"]: line for line in lines if line["event"] == kind}.values())


def losses(run: Path) -> list[float]:
    return [float(line["loss"]) for line in events(run, "train")]


def adapter_bytes(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


def require_same_run(one: Path, other: Path, what: str) -> None:
    """Adapter and every loss, byte for byte."""
    pairs = list(zip(losses(one), losses(other), strict=True))
    apart = [f"step {step}: {a!r} and {b!r}" for step, (a, b) in enumerate(pairs, 1) if a != b]
    require(not apart, f"{what}: losses part at {apart[0] if apart else ''}")
    require(adapter_bytes(one) == adapter_bytes(other), f"{what}: equal losses, other adapter bytes")


def memory_facts(record: dict[str, Any]) -> dict[str, Any]:
    """The plan's memory beside the measured one."""
    planned, measured = record["predicted"]["peak_memory_bytes"], record["peak_memory_bytes"]
    return {
        "planned_peak_bytes": planned,
        "peak_memory_bytes": measured,
        "model_memory_bytes": record["model_memory_bytes"],
        "planned_over_measured": round(planned / measured, 3),
    }


def gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"


class HostMemory:
    """The most anonymous memory that this process holds inside the block, beyond what it held before.

    Pages of a weight file that is mapped are not among it: the system takes those back when it likes.
    """

    def __enter__(self) -> HostMemory:
        self.before = self.peak = _anonymous_bytes()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._ended.wait(0.01):
            self.peak = max(self.peak, _anonymous_bytes())

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def grown_bytes(self) -> int:
        return self.peak - self.before


def _anonymous_bytes() -> int:
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        return next((int(line.split()[1]) << 10 for line in status if line.startswith("RssAnon")), 0)


@contextlib.contextmanager
def memory_cap(setting: Setting, num_bytes: int) -> Iterator[None]:
    """Inside, the device gives this process no more: of a GPU's memory in all, of a host's beyond what it has now."""
    import torch

    if setting.on_gpu:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(num_bytes / total)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", encoding="ascii") as statm:
        mapped = int(statm.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (mapped + num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
