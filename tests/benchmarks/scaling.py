"""How training an adapter scales over devices: a model of bytes and operations, checked against two real processes.

    python tests/benchmarks/scaling.py            the tables of the README
    python tests/benchmarks/scaling.py --check    counts what two processes send and compute, beside the model

A step of a frozen base with P parameters under an adapter with A trained numbers, T tokens in each of k passes a device:

    operations      2 P T forward, 2 P T backward (no gradient of a frozen weight), 2 P T more where layers are recomputed
    replicated      each device sends its k gradients once and a sum once: (k + 1) (N - 1)/N 4 A bytes a step
    fsdp            besides, every pass gathers the base forward and backward: 2 (N - 1)/N 2 P bytes a pass, in bfloat16

Nothing overlaps in the model: it says where communication would be all that is seen, not how well it is hidden.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

GIB = 1 << 30


@dataclass(frozen=True)
class Size:
    """A base and the adapter on it (LoRA, r 16, every linear layer of a block)."""

    name: str
    parameters: float
    trained: float
    largest_block: float
    """Parameters of a block, which are whole while it computes."""
    tables: float
    """Parameters of input embedding and head, which are whole during a pass."""


@dataclass(frozen=True)
class Net:
    """Devices and what joins them: bytes a second that a device receives."""

    name: str
    devices: int
    bytes_per_second: float


SIZES = (
    Size("8B", 8.03e9, 41.9e6, 218e6, 1.05e9),
    Size("70B", 70.6e9, 207.1e6, 856e6, 2.1e9),
)
# 40 % of the 989e12 dense bfloat16 operations of an H100, as good training code reaches
OPERATIONS_PER_SECOND = 0.4 * 989e12
NETS = (
    Net("8, one box (NVLink)", 8, 300e9),
    Net("64, 8 boxes (400 Gb/s a device)", 64, 40e9),
    Net("64, 8 boxes (100 Gb/s a box)", 64, 1.4e9),
)


def operations(parameters: float, tokens: float, *, recomputed: bool = False) -> float:
    """Of one pass over tokens, forward and backward, without those of attention over positions."""
    return (6.0 if recomputed else 4.0) * parameters * tokens


def gradient_bytes(trained: float, devices: int, passes: int) -> float:
    """Sent by a device in a step: each pass's gradients to those who add them up, and its part of the sum to all."""
    return (passes + 1) * (devices - 1) / devices * 4 * trained


def gathered_bytes(parameters: float, devices: int, width: int = 2) -> float:
    """Received by a device in a pass: the parts of the base that others hold, before the forward and the backward."""
    return 2 * (devices - 1) / devices * width * parameters


def even_tokens_fsdp(devices: int, rate: float, bytes_per_second: float) -> float:
    """Tokens of a pass below which gathering the base takes longer than computing; the size of the base cancels out."""
    return gathered_bytes(1.0, devices) / bytes_per_second * rate / operations(1.0, 1.0)


def even_tokens_replicated(size: Size, devices: int, rate: float, bytes_per_second: float) -> float:
    """The same for a base that every device has, with one pass a step."""
    return gradient_bytes(size.trained, devices, 1) / bytes_per_second * rate / operations(size.parameters, 1.0)


def held_bytes(size: Size, devices: int, *, sharded: bool) -> float:
    """Of weights on a device: the base in bfloat16; adapter, gradients and Adam's two moments in float32."""
    adapter = 16 * size.trained
    if not sharded:
        return 2 * size.parameters + adapter
    # two blocks are whole at once, the next gathered while one computes
    return 2 * size.parameters / devices + 2 * 2 * size.largest_block + 2 * size.tables + adapter


def table(tokens: float, rate: float) -> list[str]:
    """Lines of the README's table: seconds of one pass and its communication."""
    lines = [
        "| base | devices | way | GiB a device | computing, s | communicating, s | equal at tokens a pass |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for size in SIZES:
        computing = operations(size.parameters, tokens) / rate
        for net in NETS:
            gradients = gradient_bytes(size.trained, net.devices, 1) / net.bytes_per_second
            gathering = gathered_bytes(size.parameters, net.devices) / net.bytes_per_second
            for way, seconds, even in (
                ("replicated", gradients, even_tokens_replicated(size, net.devices, rate, net.bytes_per_second)),
                ("fsdp", gradients + gathering, even_tokens_fsdp(net.devices, rate, net.bytes_per_second)),
            ):
                held = held_bytes(size, net.devices, sharded=way == "fsdp") / GIB
                lines.append(
                    f"| {size.name} | {net.name} | {way} | {held:.0f} | {computing:.2f} | {seconds:.2f} | {even:,.0f} |"
                )
    return lines


# -- the check: two processes of this machine ----------------------------------------------------------------------

HIDDEN, LAYERS, VOCABULARY, ROWS, LENGTH, RANK = 256, 6, 512, 4, 64, 8


@dataclass
class Counted:
    """What one of two processes was seen to do."""

    received: int = 0
    sent: int = 0


def _worker(folder: str) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from peftcli import adapters
    from peftcli.adapters.surgery import adapter_of
    from peftcli.models.sharding import local_bytes, shard
    from peftcli.models.structure import structure
    from peftcli.training.agreement import shared_length, taken
    from peftcli.training.group import current_world

    torch.set_num_threads(1)
    world = current_world()
    torch.manual_seed(0)
    heads = HIDDEN // 32
    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=3 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        vocab_size=VOCABULARY,
    )
    model = LlamaForCausalLM(config)
    base = sum(parameter.numel() for parameter in model.parameters())
    adapters.attach(model, {"type": "lora", "r": RANK})
    trained = tuple(adapter_of(model).trainable_parameters().values())
    numbers = sum(parameter.numel() for parameter in trained)
    ids = torch.randint(VOCABULARY, (ROWS, LENGTH))

    def one_pass() -> torch.Tensor:
        loss: torch.Tensor = model(input_ids=ids, labels=ids).loss
        loss.backward()
        return loss.detach()

    found: dict[str, tuple[float, float]] = {}
    found["operations"] = (_operations_of(one_pass), operations(base - VOCABULARY * HIDDEN, ROWS * LENGTH))
    share = taken(one_pass(), trained)
    with _counting() as counted:
        world.add([share], (0, 1), length=shared_length(trained), device=torch.device("cpu"))
    found["bytes of gradients"] = (counted.sent, gradient_bytes(numbers, 2, 1))
    computing = _seconds_of(one_pass)
    whole = local_bytes(model, trained)
    shard(
        model,
        tuple(structure(model).blocks.values()),
        trained,
        device=torch.device("cpu"),
        processes=2,
    )
    found["bytes held"] = (local_bytes(model, trained), whole / 2)
    one_pass()
    with _counting() as counted:
        one_pass()
    found["bytes gathered"] = (counted.received, gathered_bytes(base, 2, width=4))
    bandwidth = _bandwidth()
    found["seconds of a pass"] = (_seconds_of(one_pass), computing + gathered_bytes(base, 2, width=4) / bandwidth)
    if world.rank == 0:
        print(f"{numbers:,} trained of {base:,} parameters; {bandwidth / 1e9:.2f} GB/s between the two processes")
        for name, (seen, wanted) in found.items():
            print(f"{name:20} counted {seen:14,.4g}   by the model {wanted:14,.4g}   ratio {seen / wanted:.3f}")


def _operations_of(run: Callable[[], Any]) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def _seconds_of(run: Callable[[], Any], times: int = 7) -> float:
    found = []
    for _ in range(times):
        started = time.perf_counter()
        run()
        found.append(time.perf_counter() - started)
    # the least disturbed
    return min(found)


class _counting:
    """Counts what this process sends and receives through torch's collectives inside the block."""

    def __enter__(self) -> Counted:
        import torch.distributed as dist

        self.dist, self.counted, self.before = dist, Counted(), {}
        for name in ("all_gather_into_tensor", "all_gather_single", "all_to_all_single"):
            if hasattr(dist, name):
                self.before[name] = getattr(dist, name)
                setattr(dist, name, self._wrapped(name, self.before[name]))
        from peftcli.training import group

        self.group, self.gather = group, group._all_gather
        group._all_gather = self._wrapped("all_gather", self.gather)
        return self.counted

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        size = self.dist.get_world_size()

        def call(output: Any, given: Any = None, *rest: Any, **named: Any) -> Any:
            given = named.get("input_tensor", given) if given is None else given
            output_bytes = output.numel() * output.element_size()
            self.counted.received += output_bytes * (size - 1) // size
            sent = given.numel() * given.element_size()
            self.counted.sent += sent * (size - 1) // size if name == "all_to_all_single" else sent * (size - 1)
            return real(output, *([] if "input_tensor" in named else [given]), *rest, **named)

        return call

    def __exit__(self, *_: object) -> None:
        for name, real in self.before.items():
            setattr(self.dist, name, real)
        self.group._all_gather = self.gather


def _bandwidth() -> float:
    """Bytes a second that a process receives in gathers of blocks' size."""
    import torch
    import torch.distributed as dist

    mine = torch.zeros(HIDDEN * HIDDEN * 13 // 2)
    found = torch.empty(2 * mine.numel())
    return mine.numel() * 4 / _seconds_of(lambda: dist.all_gather_into_tensor(found, mine))


def check() -> None:
    """Two processes of this machine beside the model."""
    with tempfile.TemporaryDirectory() as folder:
        common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "PEFTCLI_RENDEZVOUS": f"{folder}/meet"}
        workers = [
            subprocess.Popen(
                [sys.executable, __file__, "--worker", folder],
                env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(2)
        ]
        if any([worker.wait() for worker in workers]):
            raise SystemExit(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="count what two processes do, beside the model")
    parser.add_argument("--tokens", type=int, default=8192, help="tokens of a pass on a device")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        _worker(given.worker)
    elif given.check:
        check()
    else:
        print("\n".join(table(given.tokens, OPERATIONS_PER_SECOND)))


if __name__ == "__main__":
    main()
