"""What is decided for a device, checked without having it; that the decisions reach the places that need them."""

from __future__ import annotations

import inspect
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers.core_model_loading import MergeModulelist

from peftcli.cli.entry import run as peft
from peftcli.errors import DeviceError
from peftcli.models import device as devices
from peftcli.models import load
from peftcli.models.builtin import builtin_base
from peftcli.models.fingerprint import fingerprint
from peftcli.models.source import BaseSource
from peftcli.planning.machine import resolve_device, resolve_precision
from peftcli.training.acceleration import build_accelerator

TINY = builtin_base("tiny")
SOURCE = BaseSource("builtin:tiny", str(TINY), None, TINY)


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """torch says that there is a GPU; what is asked of it is noted, and the variable for cuBLAS is not set yet."""
    asked: list[str] = []
    monkeypatch.delenv(devices.CUBLAS_VARIABLE, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: asked.append("peak"))
    return asked


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_cublas_is_settled_when_the_device_is_chosen(a_gpu: list[str], wanted: str) -> None:
    assert resolve_device(wanted) == "cuda"
    assert os.environ[devices.CUBLAS_VARIABLE] == ":4096:8"


def test_a_setting_of_the_user_stays(a_gpu: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(devices.CUBLAS_VARIABLE, ":16:8")
    resolve_device("cuda")
    assert os.environ[devices.CUBLAS_VARIABLE] == ":16:8"


def test_the_cpu_needs_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(devices.CUBLAS_VARIABLE, raising=False)
    assert resolve_device("cpu") == "cpu"
    assert devices.CUBLAS_VARIABLE not in os.environ


def test_emulated_bf16_is_none(a_gpu: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A card without bf16 gets fp16 by itself, and is refused bf16; torch counts emulation unless it is told not to."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert resolve_precision("auto", "auto", "cuda") == ("fp16", "float16")
    with pytest.raises(DeviceError, match="no bf16"):
        build_accelerator(device="cuda", precision="bf16")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert resolve_precision("auto", "auto", "cuda") == ("bf16", "bfloat16")


def test_torch_still_tells_emulation_apart() -> None:
    assert "including_emulation" in inspect.signature(torch.cuda.is_bf16_supported).parameters


def test_weights_are_read_onto_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers is told where each weight goes; on a CPU it is told nothing, as ever."""
    told: dict[str, Any] = {}
    auto = load.auto_class_named("AutoModelForCausalLM")

    def from_pretrained(*args: Any, **kwargs: Any) -> Any:
        told.update(kwargs)
        return nn.Module(), {}

    monkeypatch.setattr(auto, "from_pretrained", from_pretrained)
    monkeypatch.setattr(nn.Module, "to", lambda self, device: self)
    for device, wanted in (("cuda", {"": "cuda"}), ("cuda:1", {"": "cuda:1"}), ("cpu", None)):
        told.clear()
        load.load_model(SOURCE, device=device)
        assert told.get("device_map") == wanted


def test_a_device_map_of_one_device_gives_the_same_model() -> None:
    """With the CPU in the GPU's place: no hooks, the same weights, the same way of saving."""
    auto = load.auto_class_named("AutoModelForCausalLM")
    plain = auto.from_pretrained(TINY, dtype=torch.bfloat16)
    mapped = auto.from_pretrained(TINY, dtype=torch.bfloat16, device_map={"": "cpu"})
    assert fingerprint(plain.named_parameters()) == fingerprint(mapped.named_parameters())
    assert {n: b.sum().item() for n, b in plain.named_buffers()} == {
        n: b.sum().item() for n, b in mapped.named_buffers()
    }
    assert not any(hasattr(module, "_hf_hook") for module in mapped.modules())
    mapped.to(torch.float32)


@pytest.mark.parametrize(
    ("source", "target", "staged"),
    [
        ("cpu", "cuda", True),
        ("cpu", "cuda:0", True),
        ("cpu", "cpu", False),
        ("cuda", "cuda", False),
        ("cpu", "mps", False),
    ],
)
def test_copies_to_cuda_are_staged(source: str, target: str, staged: bool) -> None:
    assert devices.is_staged(source, target) is staged


def test_a_staged_copy_is_pinned_and_not_waited_for() -> None:
    calls: list[Any] = []

    class Host:
        device = torch.device("cpu")

        def pin_memory(self) -> Host:
            calls.append("pinned")
            return self

        def to(self, device: Any, non_blocking: bool) -> str:
            calls.append((str(device), non_blocking))
            return "there"

    assert devices.to_device(Host(), "cuda:0") == "there"  # type: ignore[arg-type, comparison-overlap]
    assert calls == ["pinned", ("cuda:0", True)]


def test_a_tensor_that_is_there_is_not_touched() -> None:
    tensor = torch.ones(3)
    assert devices.to_device(tensor, "cpu") is tensor


def test_the_peak_is_counted_anew(a_gpu: list[str]) -> None:
    devices.start_peak_memory("cpu")
    assert a_gpu == []
    devices.start_peak_memory("cuda")
    assert a_gpu == ["peak"]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        MemoryError(),
    ],
)
def test_every_way_of_running_out_of_memory_is_known(error: BaseException) -> None:
    assert devices.is_out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: an illegal memory access"), ValueError("out of memory")])
def test_other_faults_are_none(error: BaseException) -> None:
    assert not devices.is_out_of_memory(error)


def test_the_fingerprint_of_the_built_in_base_is_what_it_was() -> None:
    """Adapters in the world carry it: computing it another way may not change it."""
    lock = Path(__file__).parents[2] / "recipes" / "tiny" / "lora.lock"
    model = load.load_model(SOURCE)
    assert fingerprint(model.named_parameters()).exact in lock.read_text(encoding="utf-8")


@pytest.mark.parametrize("where", ["peftcli.runs.assembly.load_model", "peftcli.jobs.adapter_base.load_model"])
@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("CUDA error: out of memory")]
)
def test_a_base_that_does_not_fit_the_device(
    where: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 9 wherever it happens, and the run says why it failed."""
    recipe, run = tmp_path / "r.yaml", tmp_path / "run"
    recipe.write_text(
        "model: builtin:tiny\ndata: {train: {path: builtin:support, rows: 8}, validation: 2}\nmethod: {type: lora, r: 2}\n"
        "training: {max_steps: 1, batch_size: 2}\nthreads: 1\n"
    )
    if "adapter_base" in where:
        assert peft(["train", str(recipe), "--output", str(run), "--quiet"]) == 0

    def full(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(where, full)
    command = ["train", str(recipe), "--output", str(run)] if "assembly" in where else ["evaluate", str(run)]
    assert peft([*command, "--quiet"]) == 9
    said = capsys.readouterr().err
    assert "out of memory while loading" in said
    assert "Traceback" not in said
    if "assembly" in where:
        assert json.loads((run / "run.json").read_text())["status"] == "failed"


def test_any_other_lack_of_device_memory_is_no_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("peftcli.jobs.doctor.examine", full)
    assert peft(["doctor"]) == 9
    assert "the device ran out of memory" in capsys.readouterr().err


NO_ROOM = [
    torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:114] . DefaultCPUAllocator: can't allocate memory: you tried to"),
]


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        *((error, 9, "out of memory") for error in (*NO_ROOM, MemoryError())),
        (ValueError("experts of 3 and 4 rows"), 4, "experts of 3 and 4 rows"),
    ],
)
def test_what_stops_a_mixture_while_its_experts_are_put_together(
    error: Exception,
    code: int,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """transformers keeps such a cause to itself and raises an error that names none."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.MixtralConfig(num_key_value_heads=2, num_local_experts=2, vocab_size=1600, **sizes)
    transformers.MixtralForCausalLM(config).save_pretrained(tmp_path / "base")
    for path in builtin_base("tiny").glob("*token*"):
        shutil.copy(path, tmp_path / "base")
    (tmp_path / "r.yaml").write_text(
        "model: ./base\ndata: {train: {path: builtin:support, rows: 8}, validation: 2, max_length: 256}\n"
        "method: {type: lora, target_modules: [q_proj]}\ntraining: {max_steps: 1}\nthreads: 1\n"
    )

    def full(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(MergeModulelist, "convert", full)
    assert peft(["train", str(tmp_path / "r.yaml"), "--output", str(tmp_path / "run"), "--quiet"]) == code
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("error", NO_ROOM)
def test_no_room_for_a_weight_is_not_taken_for_a_broken_base(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers passes on whatever torch raised: the same words, whichever allocator it was."""

    def full(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", full)
    with pytest.raises(type(error)) as caught:
        load.load_model(SOURCE)
    assert caught.value is error
