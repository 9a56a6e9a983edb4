"""The speed comparison: what it refuses, what it tells, and that the whole command works at toy size."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


def _module(name: str) -> Any:
    # by path: other benchmarks have modules of the same names
    spec = importlib.util.spec_from_file_location(f"bench_{name}", HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = found
    spec.loader.exec_module(found)
    return found


judging, protocols, tables = (_module(name) for name in ("judging", "protocols", "table"))


def figures(losses: list[float], norms: list[float] | None = None, **more: Any) -> dict[str, Any]:
    return {"losses": losses, "grad_norms": [1.0] * len(losses) if norms is None else norms, **more}


def test_arms_that_do_the_same_are_compared() -> None:
    assert judging.faults({"peftcli": figures([3.0, 2.0]), "peft-best": figures([3.0002, 2.0], changed=True)}) == []


@pytest.mark.parametrize(
    ("theirs", "word"),
    [
        (figures([3.0, 2.001]), "differ from ours by up to 0.0005"),
        (figures([3.0]), "differ from ours by up to inf"),
        (figures([3.0, float("nan")]), "differ from ours by up to inf"),
        (figures([3.0, 2.0], [1.0, 0.0]), "a gradient is zero"),
        (figures([3.0, 2.0], [1.0, float("nan")]), "a gradient is zero or not finite"),
        (figures([3.0, 2.0], [1.0]), "was not told at every step"),
        (figures([3.0, 2.0], changed=False), "no trained tensor has changed"),
    ],
)
def test_arms_that_do_not_do_the_same_are_not(theirs: dict[str, Any], word: str) -> None:
    (said,) = judging.faults({"peftcli": figures([3.0, 2.0]), "peer": theirs})
    assert said.startswith("peer: ")
    assert word in said


def test_a_gradient_of_ours_that_is_zero_is_told_too() -> None:
    (said,) = judging.faults({"peftcli": figures([3.0, 2.0], [0.0, 1.0]), "peer": figures([3.0, 2.0])})
    assert said.startswith("peftcli: a gradient is zero")


def rounds() -> list[dict[str, dict[str, float]]]:
    def one(speed: float, memory: float) -> dict[str, float]:
        return {"tokens_per_second": speed, "tokens_per_cpu_second": speed, "peak_over_loaded_bytes": memory,
                "first_step_seconds": 2.0}  # fmt: skip

    return [
        {"peftcli": one(200, 50), "peer": one(100, 100)},
        {"peftcli": one(30, 60), "peer": one(10, 100)},
        {"peftcli": one(150, 50), "peer": {**one(150, 100), "version": "peer 1.0"}},
    ]


def test_ratios_are_taken_within_a_round() -> None:
    found = judging.ratios(rounds(), "peftcli", "peer")
    assert found["tokens_per_second"] == {"min": 1.0, "median": 2.0, "max": 3.0}
    assert found["peak_over_loaded_bytes"] == {"min": 0.5, "median": 0.5, "max": 0.6}
    assert judging.best(rounds(), "peftcli")["tokens_per_second"] == 200
    assert judging.best(rounds(), "peftcli")["peak_over_loaded_bytes"] == 50


def document() -> dict[str, Any]:
    measured = {"rounds": rounds(), "ratios": {"peftcli": {"peer": judging.ratios(rounds(), "peftcli", "peer")}}}
    about = {"about": "LoRA on rows", "dtype": "bfloat16"}
    return {"machine": {"processor": "CPU", "threads": 2}, "protocols": {"rows": {**about, **measured}}}


def test_the_table_says_how_far_the_rounds_lie_apart() -> None:
    lines = tables.table(document()).splitlines()
    assert lines[2].startswith("| LoRA on rows, bfloat16 | peer | 2.00x (1.00 to 3.00) |")
    assert "0.50x (0.50 to 0.60)" in lines[2]
    assert "median of 3 rounds" in lines[-1]


def test_the_table_goes_between_its_marks_and_again() -> None:
    text = f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n"
    once = tables.put_into(text, document())
    assert "old" not in once
    assert once.startswith("before\n")
    assert once.endswith("after\n")
    assert tables.put_into(once, document()) == once
    with pytest.raises(SystemExit):
        tables.put_into("no marks", document())


def test_a_figure_for_every_column() -> None:
    assert set(tables.COLUMNS) == set(judging.MEASURES)


@pytest.mark.parametrize("name", sorted(protocols.PROTOCOLS))
def test_every_protocol_is_a_recipe(name: str, tmp_path: Path) -> None:
    from peftcli.recipe import load_recipe

    protocol = protocols.PROTOCOLS[name]
    path = tmp_path / "recipe.yaml"
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
    document = protocol.recipe("builtin:tiny", "rows.jsonl", steps=5, dtype=protocol.dtype, threads=1)
    path.write_text(json.dumps(document), encoding="utf-8")
    loaded = load_recipe(path, ())
    assert loaded.recipe.training.batch_size == loaded.recipe.training.micro_batch_size == protocol.batch_rows
    assert loaded.recipe.method.name == protocol.method["type"]


def test_every_arm_of_a_protocol_is_there() -> None:
    named = {arm for protocol in protocols.PROTOCOLS.values() for arm in protocol.arms}
    assert named <= set(protocols.ARMS)
    assert all((HERE / "arms" / arm.script).is_file() for arm in protocols.ARMS.values())
    peers = {arm.peer for arm in protocols.ARMS.values() if arm.peer is not None}
    pins = [(HERE / "peers" / f"{peer}.txt").read_text(encoding="ascii").split() for peer in peers]
    assert all("==" in line for lines in pins for line in lines)


def test_memory_is_this_process_s_own() -> None:
    """A process that a large one starts must not be told to be as large."""
    code = f"import sys; sys.path.insert(0, {str(HERE)!r}); import meter; print(meter.peak_bytes())"
    block = bytearray(600 << 20)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(block) > 2 * int(done.stdout)


@pytest.mark.slow
def test_the_whole_command(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    output = tmp_path / "result.json"
    command = [sys.executable, str(HERE / "run.py"), "instruction", "--tiny", "--rounds", "2", "--steps", "5",
               "--agreement-steps", "3", "--threads", "1", "--peer", f"peft={sys.executable}", "--arms", "peft-best",
               "--output", str(output)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(output.read_text(encoding="utf-8"))["protocols"]["instruction"]
    assert 0 <= found["agreement"]["largest_relative_difference"]["peft-best"] < 1e-4
    assert len(found["rounds"]) == 2
    assert tables.table(json.loads(output.read_text(encoding="utf-8"))).splitlines()[2] in done.stdout
