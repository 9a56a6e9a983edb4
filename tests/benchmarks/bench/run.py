"""`make bench`: the same training by peftcli and by its peers, on this CPU, in fresh processes that take turns.

    python tests/benchmarks/bench/run.py [PROTOCOL ...] [--rounds 3] [--steps N] [--threads N] [--model FOLDER]
        [--environments FOLDER | --peer NAME=PYTHON ...] [--arms a,b] [--output FILE.json] [--list]

Each peer gets an environment of its own with what `peers/` pins. Before anything is timed, every arm trains 50 steps in
float32 from the same start on the same rows: its losses must be ours within 1e-4, and its gradients not zero.
Then the arms take turns, a fresh process each. A ratio is ours over theirs within a round; least, median and largest of
the rounds are told, by the wall's clock and by the processor's (which other work on the machine disturbs less).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import environments
import judging
from protocols import ARMS, PROTOCOLS, QUICK, Protocol
from table import table

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
AGREEMENT_STEPS = 50
WARM_STEPS = 3


@dataclass
class Session:
    """What one command was asked for."""

    place: Path
    threads: int
    model: Path | None
    tiny: bool
    pythons: dict[str, Path]
    environments: Path

    def python(self, peer: str | None) -> Path:
        if peer is None:
            return Path(sys.executable)
        if peer not in self.pythons:
            self.pythons[peer] = environments.interpreter(peer, self.environments)
        return self.pythons[peer]

    def process(self, script: Path, peer: str | None, job: dict[str, Any]) -> dict[str, Any]:
        """Runs a script on a job in a fresh process and returns what it wrote; raises `SystemExit` where it failed."""
        path = self.place / "job.json"
        result = self.place / "result.json"
        result.unlink(missing_ok=True)
        path.write_text(json.dumps({**job, "result": str(result)}), encoding="utf-8")
        command = [str(self.python(peer)), str(script), str(path)]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=self._surroundings(), cwd=self.place
        )
        if done.returncode or not result.is_file():
            raise SystemExit(f"{script.name} failed with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")
        figures: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        return figures

    def _surroundings(self) -> dict[str, str]:
        ours = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
                "OMP_NUM_THREADS": str(self.threads)}  # fmt: skip
        return {**os.environ, **ours}


def material(session: Session, protocol: Protocol, *, steps: int, dtype: str) -> dict[str, Any]:
    """What the arms of a protocol are given; see `material.py`."""
    folder = session.place / f"{protocol.name}-{dtype}-{steps}"
    folder.mkdir(parents=True)
    job = {"protocol": protocol.name, "folder": str(folder), "steps": steps, "dtype": dtype, "threads": session.threads,
           "tiny": session.tiny, "model": None if session.model is None else str(session.model)}  # fmt: skip
    made = session.process(HERE / "material.py", None, job)
    return {
        **made,
        "folder": str(folder),
        "steps": steps,
        "dtype": dtype,
        "threads": session.threads,
        "batch_rows": protocol.batch_rows,
        "max_length": protocol.max_length,
        "learning_rate": protocol.learning_rate,
        "seed": 0,
    }


def train(session: Session, name: str, given: dict[str, Any], *, keep_losses: bool = False) -> dict[str, Any]:
    """One arm on one protocol, in a process of its own."""
    arm = ARMS[name]
    job = {**given, "best": arm.best, "order": "given" if keep_losses else arm.order, "keep_losses": keep_losses,
           "warm_steps": WARM_STEPS, "overrides": list(arm.overrides)}  # fmt: skip
    return session.process(HERE / "arms" / arm.script, arm.peer, job)


def agreement(session: Session, protocol: Protocol, arms: list[str], steps: int) -> dict[str, Any]:
    """Losses of all arms in float32 from one start on the same rows; raises `SystemExit` where they differ."""
    given = material(session, protocol, steps=steps, dtype="float32")
    found = {name: train(session, name, given, keep_losses=True) for name in arms}
    shutil.rmtree(given["folder"])
    if wrong := judging.faults(found):
        raise SystemExit(
            f"{protocol.name}: these do not do the same work, so nothing is timed:\n  " + "\n  ".join(wrong)
        )
    apart = {name: judging.disagreement(found["peftcli"]["losses"], one["losses"]) for name, one in found.items()}
    return {"steps": steps, "largest_relative_difference": {name: apart[name] for name in arms if name != "peftcli"}}


def measure(session: Session, protocol: Protocol, arms: list[str], *, rounds: int, steps: int) -> dict[str, Any]:
    """The arms in turn, `rounds` times; the order within a round is turned round each time."""
    given = material(session, protocol, steps=steps, dtype=protocol.dtype)
    found: list[dict[str, Any]] = []
    for number in range(rounds):
        turn = arms if number % 2 == 0 else arms[::-1]
        figures = {name: train(session, name, given) for name in turn}
        found.append({name: _without_traces(figures[name]) for name in arms})
        told = ", ".join(f"{name} {figures[name]['tokens_per_second']:,.0f}" for name in arms)
        print(f"  {protocol.name}, round {number + 1} of {rounds}: {told} tokens/s", flush=True)
    shutil.rmtree(given["folder"])
    ours = [name for name in arms if ARMS[name].peer is None]
    return {
        "rounds": found,
        "best": {name: judging.best(found, name) for name in arms},
        "ratios": {arm: {peer: judging.ratios(found, arm, peer) for peer in arms if peer not in ours} for arm in ours},
    }


def _without_traces(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in figures.items() if name not in ("losses", "grad_norms")}


def compare(session: Session, protocol: Protocol, options: argparse.Namespace) -> dict[str, Any]:
    """One protocol, checked and then timed."""
    asked = options.arms.split(",") if options.arms else list(protocol.arms)
    arms = ["peftcli", *(name for name in asked if name != "peftcli")]
    print(f"{protocol.name}: {protocol.about}, {protocol.dtype}; {', '.join(arms)}", flush=True)
    agreed = agreement(session, protocol, arms, options.agreement_steps)
    told = ", ".join(f"{name} {apart:.1g}" for name, apart in agreed["largest_relative_difference"].items())
    print(f"  losses of {agreed['steps']} steps in float32 agree within: {told}", flush=True)
    measured = measure(session, protocol, arms, rounds=options.rounds, steps=options.steps or protocol.steps)
    return {"about": protocol.about, "dtype": protocol.dtype, "agreement": agreed, **measured}


def machine(threads: int) -> dict[str, Any]:
    """Where it was measured."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return {"processor": name, "cpus": os.cpu_count(), "threads": threads, "load": os.getloadavg()[0],
            "python": platform.python_version()}  # fmt: skip


@contextlib.contextmanager
def _place(keep: str | None) -> Iterator[Path]:
    if keep is not None:
        Path(keep).mkdir(parents=True, exist_ok=True)
        yield Path(keep).resolve()
        return
    with tempfile.TemporaryDirectory(prefix="peftcli-bench-") as folder:
        yield Path(folder)


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("protocols", nargs="*", help=f"default: {' '.join(QUICK)}; all: every one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, help=f"optimizer steps, the first {WARM_STEPS} of them not timed")
    parser.add_argument("--agreement-steps", type=int, default=AGREEMENT_STEPS)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--model", type=Path, help="folder of the base; default: bench-28m of PEFTCLI_GROUND, else random"
    )
    parser.add_argument("--environments", type=Path, default=ROOT / "build" / "bench")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON", help="use this Python for a peer")
    parser.add_argument("--arms", help="of the peers, by comma; default: those of the protocol")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "bench" / "result.json")
    parser.add_argument("--work", help="folder for what is made on the way; default: one that is removed")
    parser.add_argument("--tiny", action="store_true", help="a base of toy size: does the command work at all")
    parser.add_argument("--list", action="store_true", help="name the protocols")
    return parser.parse_args(arguments)


def _model(given: Path | None, *, tiny: bool) -> Path | None:
    ground = os.environ.get("PEFTCLI_GROUND")
    if given is not None or tiny or not ground:
        return given
    found = Path(ground, "models", "bench-28m")
    return found if found.is_dir() else None


def main(arguments: list[str]) -> None:
    """Runs the protocols, prints the table and writes the JSON."""
    options = _options(arguments)
    if options.list:
        print("\n".join(f"{protocol.name:<16}{protocol.about}" for protocol in PROTOCOLS.values()))
        return
    names = list(PROTOCOLS) if options.protocols == ["all"] else options.protocols or list(QUICK)
    if unknown := [name for name in names if name not in PROTOCOLS]:
        raise SystemExit(f"no such protocol: {', '.join(unknown)}; there are {', '.join(PROTOCOLS)}")
    pythons = {name: Path(path) for name, _, path in (given.partition("=") for given in options.peer)}
    document: dict[str, Any] = {"machine": machine(options.threads), "protocols": {}}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with _place(options.work) as place:
        model = _model(options.model, tiny=options.tiny)
        session = Session(place, options.threads, model, options.tiny, pythons, options.environments)
        for name in names:
            document["protocols"][name] = compare(session, PROTOCOLS[name], options)
            # after each, so that what is measured is kept whatever comes
            options.output.write_text(json.dumps(document, indent=1), encoding="utf-8")
    print(table(document))
    print(f"all figures: {options.output}")


if __name__ == "__main__":
    main(sys.argv[1:])
