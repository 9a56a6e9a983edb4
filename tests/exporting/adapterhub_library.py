"""Run in an environment of AdapterHub's library: loads or makes adapters there, and gives their logits.

python adapterhub_library.py JOBS.json      each job: {"base", "cls", "ids", "out"} and
                                            {"folder"} to load an adapter, or {"make", "save"} to make and save one
"""

from __future__ import annotations

import json
import sys

import adapters
import adapters.loading
import torch
import transformers
from safetensors.torch import save_file


def save_each(tensors: dict, path: str) -> None:
    """A prefix is one tensor under many names there, which safetensors refuses to write as it is."""
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path)


adapters.loading.save_file = save_each


def run(job: dict) -> None:
    model = getattr(transformers, job["cls"]).from_pretrained(job["base"], attn_implementation="eager").float().eval()
    ids = torch.tensor(job["ids"])
    with torch.no_grad():
        plain = model(ids).logits
    adapters.init(model)
    info: dict = {}
    if "folder" in job:
        model.load_adapter(job["folder"], set_active=True, use_safetensors=True, loading_info=info)
        assert not info["missing_keys"], info
        assert not info["unexpected_keys"], info
    else:
        config = adapters.AdapterConfig.load(job["make"])
        model.add_adapter("made", config=config, set_active=True)
        torch.manual_seed(3)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "made" in name:
                    parameter.add_(0.2 * torch.randn(parameter.shape))
        model.save_adapter(job["save"], "made", use_safetensors=True)
    with torch.no_grad():
        tuned = model(ids).logits
    save_file({"plain": plain.contiguous(), "tuned": tuned.contiguous()}, job["out"])


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        jobs = json.load(file)
    for job in jobs:
        run(job)
    print(f"adapters {adapters.__version__}, transformers {transformers.__version__}: {len(jobs)} jobs")
