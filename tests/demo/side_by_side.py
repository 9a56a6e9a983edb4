"""The last act of `make demo`: one held-out request, answered by the base and by the merged model, with transformers.

Usage: python tests/demo/side_by_side.py MERGED_FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from peftcli.data.builtin import builtin_data
from peftcli.models.builtin import builtin_base


def answer(folder: Path, request: str) -> str:
    """Greedy answer of a plain model folder to one user message."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    message = [{"role": "user", "content": request}]
    inputs = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    written = model.generate(**inputs, max_new_tokens=64, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    return str(tokenizer.decode(written, skip_special_tokens=True))


def main() -> None:
    # the output may be kept: a bar that is drawn over and over does not belong into it
    transformers_logging.disable_progress_bar()
    row = json.loads(builtin_data("support/validation").read_text(encoding="utf-8").splitlines()[0])
    request, wanted = (message["content"] for message in row["messages"])
    print(f"request  {request}")
    print(f"base     {answer(builtin_base('tiny'), request)}")
    print(f"merged   {answer(Path(sys.argv[1]), request)}")
    print(f"wanted   {wanted}")


main()
