"""The GPU's command on a CPU: every part at its tiniest size, and a driver that lets no part hide another."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
sys.path.insert(0, str(HERE))

import llama  # noqa: E402
import run  # noqa: E402
import wheels  # noqa: E402
from part import load_part  # noqa: E402
from setting import Setting, peft  # noqa: E402

PARTS = run.find_parts(HERE / "parts", [])
TWINS = {"main_fp32": "main_bf16", "speed_8b": "speed_1b", "terminate": "kill"}
"""On a CPU the same code as another part: only with `slow`."""


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "part",
    [pytest.param(part, id=part.name, marks=[pytest.mark.slow] if part.name in TWINS else []) for part in PARTS],
)
def test_every_part_passes_on_a_cpu(part: run.Part, tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []
    setting = Setting("cpu", tiny=True, folder=tmp_path, tell=lambda figures: told.append(dict(figures)))
    summary = load_part(part.path).run(setting)
    assert summary
    assert "\n" not in summary
    if part.name != "main_fp16":
        assert told[-1] == setting.figures
        json.dumps(setting.figures)


def test_the_whole_fits_its_time() -> None:
    """Every part has a bound, and what is worth most is begun first."""
    assert len(PARTS) >= 13
    assert [part.name for part in PARTS][:3] == ["card", "main_bf16", "kill"]
    assert all(0 < part.seconds <= 200 for part in PARTS)
    assert run.BUDGET_SECONDS <= 480
    assert set(TWINS) | set(TWINS.values()) <= {part.name for part in PARTS}


@pytest.mark.slow
def test_the_whole_command(tmp_path: Path) -> None:
    command = ["make", "gpu", f"PYTHON={sys.executable}", "DEVICE=cpu", f"OUTPUT={tmp_path}/result.json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads((tmp_path / "result.json").read_text())
    assert {one["part"]: one["outcome"] for one in document["parts"]} == {part.name: "passed" for part in PARTS}
    assert document["versions"]["torch"] == torch.__version__.split("+")[0] or document["versions"]["torch"]


# -- the driver, with parts that need nothing -------------------------------------------------------------------------

FAKES = {
    "good": "WORTH = 5\nSECONDS = 20\ndef run(setting):\n    setting.note(rate=7)\n    return f'well on {setting.device}'\n",
    "fails": "WORTH = 1\nSECONDS = 20\ndef run(setting):\n    setting.note(before=1)\n    assert False, 'on purpose'\n",
    "raises": "WORTH = 2\nSECONDS = 20\ndef run(setting):\n    raise KeyError('missing')\n",
    "hangs": "WORTH = 3\nSECONDS = 2\nimport subprocess, signal\ndef run(setting):\n    setting.note(begun=True)\n"
    "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n    child = subprocess.Popen(['sleep', '600'])\n"
    "    setting.note(child=child.pid)\n    child.wait()\n",
    "dies": "WORTH = 4\nSECONDS = 20\nimport os\ndef run(setting):\n    setting.note(alive=True)\n"
    "    print('last words', flush=True)\n    os.kill(os.getpid(), 11)\n",
    "leaves": "WORTH = 6\nSECONDS = 20\nimport os\ndef run(setting):\n    os._exit(0)\n",
    "broken": "WORTH = 7\nSECONDS = 20\nimport no_such_module\n",
    "last": "WORTH = 8\nSECONDS = 20\nALONE = True\ndef run(setting):\n    return 'still reached'\n",
}  # fmt: skip


def command_for(tmp_path: Path, fakes: dict[str, str], *more: str) -> list[str]:
    parts = tmp_path / "fakes"
    parts.mkdir()
    for name, text in fakes.items():
        (parts / f"{name}.py").write_text(text)
    return [sys.executable, str(HERE / "run.py"), "--device", "cpu", "--parts", str(parts), "--work", str(tmp_path / "w"),
            "--output", str(tmp_path / "result.json"), *more]  # fmt: skip


def drive(tmp_path: Path, *more: str, fakes: dict[str, str] = FAKES) -> tuple[int, dict[str, Any], str]:
    command = command_for(tmp_path, fakes, *more)
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    return done.returncode, json.loads((tmp_path / "result.json").read_text()), done.stdout


def test_a_part_that_fails_shows_and_hides_nothing(tmp_path: Path) -> None:
    code, document, printed = drive(tmp_path)
    found = {one["part"]: one for one in document["parts"]}
    assert code == 1
    assert {name: one["outcome"] for name, one in found.items()} == {
        "fails": "failed", "raises": "failed", "hangs": "timed out", "dies": "crashed", "good": "passed",
        "leaves": "crashed", "broken": "failed", "last": "passed",
    }  # fmt: skip
    assert list(found) == [part for part in sorted(FAKES, key=lambda name: FAKES[name].split()[2].zfill(2))]
    assert found["fails"]["figures"] == {"before": 1}
    assert found["hangs"]["figures"]["begun"]
    assert found["dies"]["figures"] == {"alive": True}
    assert "SIGSEGV" in found["dies"]["error"]
    assert "last words" in found["dies"]["error"]
    assert found["good"]["figures"] == {"rate": 7}
    assert document["commit"]
    assert document["versions"]["torch"]
    rows = {line.split()[0]: line for line in printed.splitlines() if line and line.split()[0] in FAKES}
    assert "on purpose" in rows["fails"]
    assert "well on cpu" in rows["good"]
    assert "KeyError" in rows["raises"]
    assert "6 of 8 parts did not pass" in printed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_an_interrupt_ends_every_process_and_tells_every_part(number: signal.Signals, tmp_path: Path) -> None:
    fakes = {
        "hangs": FAKES["hangs"].replace("SECONDS = 2", "SECONDS = 60"),
        "good": FAKES["good"],
        "last": FAKES["last"],
    }
    process = subprocess.Popen(command_for(tmp_path, fakes), stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    result = tmp_path / "result.json"
    wait_until(lambda: result.is_file() and '"well on cpu"' in result.read_text())
    process.send_signal(number)
    printed, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    found = {one["part"]: one for one in json.loads(result.read_text())["parts"]}
    assert {name: one["outcome"] for name, one in found.items()} == {
        "hangs": "interrupted", "good": "passed", "last": "not begun",
    }  # fmt: skip
    assert found["hangs"]["figures"] == {"begun": True, "child": found["hangs"]["figures"]["child"]}
    wait_until(lambda: not Path(f"/proc/{found['hangs']['figures']['child']}").exists())
    assert "2 of 3 parts did not pass: hangs, last" in printed


def wait_until(holds: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.05)


def test_figures_that_json_has_no_number_for(tmp_path: Path) -> None:
    text = "WORTH = 1\nSECONDS = 20\ndef run(setting):\n    setting.note(losses=[1.0, float('nan')])\n"
    code, _, printed = drive(tmp_path, fakes={"odd": text})
    text = (tmp_path / "result.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["parts"][0]["figures"] == {"losses": [1.0, "nan"]}
    assert code == 0
    assert "all passed" in printed


def test_all_well_is_zero(tmp_path: Path) -> None:
    code, document, printed = drive(tmp_path, "--only", "good,last")
    assert code == 0
    assert [one["outcome"] for one in document["parts"]] == ["passed", "passed"]
    assert "all passed" in printed


def test_what_the_time_does_not_reach_is_told(tmp_path: Path) -> None:
    slow = {"first": FAKES["hangs"].replace("SECONDS = 2", "SECONDS = 60").replace("WORTH = 3", "WORTH = 1")}
    code, document, _ = drive(tmp_path, "--budget", "2", "--lanes", "1", fakes=slow | {"later": FAKES["good"]})
    assert code == 1
    assert [one["outcome"] for one in document["parts"]] == ["timed out", "not begun"]


def test_an_unknown_part_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no such part: nothing"):
        run.find_parts(HERE / "parts", ["nothing"])


def test_a_timed_part_has_the_machine_to_itself(tmp_path: Path) -> None:
    def noting(worth: int, alone: bool) -> str:
        return (
            f"WORTH = {worth}\nSECONDS = 20\nALONE = {alone}\nimport time\ndef run(setting):\n"
            "    began = time.time()\n    time.sleep(0.4)\n"
            "    setting.note(began=began, ended=time.time())\n    return 'x'\n"
        )

    fakes = {"a": noting(1, False), "b": noting(2, False), "timed": noting(3, True), "c": noting(4, False)}
    code, document, _ = drive(tmp_path, "--lanes", "2", fakes=fakes)
    spans = {one["part"]: (one["figures"]["began"], one["figures"]["ended"]) for one in document["parts"]}
    assert code == 0
    assert spans["a"][0] < spans["b"][1]
    assert spans["b"][0] < spans["a"][1], "side by side"
    for other in ("a", "b", "c"):
        assert spans[other][1] <= spans["timed"][0] or spans["timed"][1] <= spans[other][0]


# -- wheels -----------------------------------------------------------------------------------------------------------


def wheel(folder: Path, name: str, version: str, contents: dict[str, str]) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    record = "".join(f"{inside},,\n" for inside in (*contents, f"{info}/METADATA", f"{info}/RECORD"))
    with zipfile.ZipFile(path, "w") as archive:
        for inside, text in contents.items():
            archive.writestr(inside, text)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/RECORD", record)
    return path


def test_only_what_is_lacking_is_unpacked_and_found_by_the_parts(tmp_path: Path) -> None:
    folder = tmp_path / "wheels"
    wheel(folder, "lacking_one", "1.0", {"lacking_one.py": "ANSWER = 42\n"})
    wheel(folder, "torch", "0.0.1", {"torch.py": "raise ImportError\n"})
    (folder / wheels.COMMIT_NAME).write_text("abc123\n")
    part = "WORTH = 1\nSECONDS = 20\ndef run(setting):\n    import lacking_one\n    return str(lacking_one.ANSWER)\n"
    code, document, _ = drive(tmp_path, "--wheels", str(folder), fakes={"uses": part})
    assert code == 0
    assert document["parts"][0]["summary"] == "42"
    assert document["commit"] == "abc123"
    assert not (tmp_path / "w" / "site" / "torch.py").exists(), "what is here already stays as it is"


def test_a_package_that_is_too_old_is_lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels.metadata, "version", lambda name: "2.9.11")
    assert wheels._lacks("pydantic")
    monkeypatch.setattr(wheels.metadata, "version", lambda name: "2.14.4")
    assert not wheels._lacks("pydantic")


def test_one_library_of_bitsandbytes_is_kept(tmp_path: Path) -> None:
    libraries = [
        f"bitsandbytes/libbitsandbytes_{kind}.so" for kind in ("cpu", "cuda118", "cuda130", "rocm72", "xpu2025")
    ]
    path = wheel(tmp_path, "bitsandbytes", "0.50", dict.fromkeys([*libraries, "bitsandbytes/__init__.py"], "x"))
    wheels._keep_one_library(path, "libbitsandbytes_cuda130.so")
    with zipfile.ZipFile(path) as archive:
        left = {name for name in archive.namelist() if name.endswith(".so")}
        record = archive.read("bitsandbytes-0.50.dist-info/RECORD").decode()
        assert "bitsandbytes/__init__.py" in archive.namelist()
    assert left == {libraries[0], libraries[2]}
    assert {name for name in libraries if name in record} == left
    with pytest.raises(SystemExit, match="choose the CUDA version"):
        wheels._keep_one_library(path, "libbitsandbytes_cuda999.so")


def test_the_driver_needs_nothing_but_python() -> None:
    """Where it is started first, packages are still to be put in place."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import run; print([m for m in sys.modules if m in sys.argv[2:]])"
    )
    command = [sys.executable, "-c", program, str(HERE), "torch", "pydantic", "transformers", "peftcli", "numpy"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"


# -- what a step costs ------------------------------------------------------------------------------------------------


def test_sizes_and_operations_of_a_llama(tmp_path: Path) -> None:
    """Beside transformers' own parameters, and torch's own count of operations."""
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import LlamaForCausalLM

    from peftcli import adapters

    shape = llama.Shape(64, 160, 6, 4, 2, 300, False)
    llama.write_llama(tmp_path, shape, "cpu", torch.float32)
    model = LlamaForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    linear = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "embed_tokens" not in name)
    assert shape.linear_parameters == linear
    found = adapters.attach(model, {"type": "lora", "r": 4, "target_modules": "all-linear"})
    assert shape.lora_parameters(4) == found.trainable
    tokens = 64
    ids = torch.arange(tokens)[None]
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids).logits.sum().backward()
    causal = 6 * shape.layers * tokens * shape.hidden
    # eager attention computes the half that the mask then takes away; the first layer's input needs no gradient
    expected = tokens * (shape.step_flops_per_token(tokens, 4) + causal)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.05)


def test_real_shapes_have_their_names_size() -> None:
    assert llama.LLAMA_1B.linear_parameters == pytest.approx(1.24e9, rel=0.01)
    assert llama.LLAMA_8B.linear_parameters + 4096 * 128256 == pytest.approx(8.03e9, rel=0.01)


def test_a_command_that_ends_otherwise_fails_the_part() -> None:
    with pytest.raises(AssertionError, match="ended with 4, not 0"):
        peft("evaluate", "/nowhere/at/all", "--quiet")
