"""Every causal architecture of the installed transformers: what the default recipe comes to on a tiny model of each.

    python tests/benchmarks/architectures.py [--only llama,mamba2] [--json table.json] [--seconds 120] [--gib 6]

Each is made from its configuration class (offline, random weights, see `tiny_architectures`), planned on the meta device,
trained for a few steps with LoRA as a recipe of one word gives it (r = 16, all-linear), merged, and read back by plain
transformers; then it writes with and without a cache. Each runs in a process of its own, forked from one that has
imported everything, with a bound on time and memory. Outcomes:

    complete    planned, trained, merged, reloaded with the same logits, cached writing as uncached
    refused     an error of ours before the first step, with its reason
    unmerged    trained, and the merge was refused with its reason
    failed      an error of ours after training began
    wrong       it came through, and a comparison does not hold
    bug         an exception that is none of our errors
    not built   transformers itself makes no model of the default configuration
    bound       beyond the time or the memory that it was given

What is compared here shares no code with what it judges. Exit code 10 where one is wrong or a bug.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from tiny_architectures import model_types, tiny_config
from torch import Tensor
from transformers import AutoModelForCausalLM

from peftcli.errors import MergeError, PeftcliError
from peftcli.jobs.merge import PROMPTS, merge_adapter
from peftcli.jobs.opening import open_adapter
from peftcli.models.builtin import builtin_base
from peftcli.planning.plan import make_plan
from peftcli.recipe import load_recipe
from peftcli.run import train

STEPS = 3
NEW_TOKENS = 6
TOLERANCE = 1e-4
"""Of logits, relative to the largest of them (at least 1)."""
EFFECT_SHARE = 0.02
"""Beside that, a merged model may lose this share of what the adapter changes."""
RECIPE = """\
model: {base}
data: {{train: {rows}, validation: 4, max_length: 96}}
method: lora
training: {{max_steps: {steps}, batch_size: 4}}
evaluation: {{samples: 1}}
generation: {{max_new_tokens: 4}}
device: cpu
threads: 1
"""


@dataclass
class Finding:
    """What one architecture came to."""

    name: str
    outcome: str = "complete"
    stage: str = "build"
    reason: str = ""
    notes: list[str] = field(default_factory=list)
    trainable: int = 0
    left_out: int = 0
    seconds: float = 0.0


# -- one architecture ----------------------------------------------------------------------------------------------


def examine(name: str, folder: Path) -> Finding:
    """Takes one architecture through every stage, in this process."""
    found = Finding(name)
    try:
        config = tiny_config(name)
    except Exception as error:  # whatever transformers raises
        found.outcome, found.reason = "not built", _told(error)
        return found
    try:
        _through(found, *_write_base(config, folder / "base"), folder)
    except MergeError as error:
        found.outcome, found.reason = "unmerged", error.render()
    except PeftcliError as error:
        if not (folder / "base" / "model.safetensors").is_file():
            found.outcome, found.reason = "not built", error.render()
            return found
        begun = (folder / "run" / "metrics.jsonl").is_file()
        found.outcome, found.reason = "failed" if begun else "refused", error.render()
    except MemoryError as error:
        found.outcome, found.reason = "bound", _told(error)
    except Exception as error:
        found.outcome, found.reason = "bug", _told(error)
    return found


def _write_base(config: Any, folder: Path) -> tuple[Path, bool]:
    """A model folder with random weights and the tokenizer of the built-in base, and whether transformers can make the
    model; where it cannot, the folder is there all the same, for the plan to say so."""
    config.save_pretrained(folder)
    own = builtin_base("tiny")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(own / file, folder / file)
    torch.manual_seed(0)
    try:
        model = AutoModelForCausalLM.from_config(config)
    except Exception:  # whatever transformers raises
        return folder, False
    with torch.no_grad():
        for parameter in model.parameters():
            # factors that start at zero would hide every gradient behind them
            if parameter.is_floating_point() and not parameter.any():
                parameter.normal_(0.0, 0.05)
    model.save_pretrained(folder)
    if type(model.config) is not type(config) and type(model.config) not in AutoModelForCausalLM._model_mapping:
        config.save_pretrained(folder)  # checkpoints of such families hold the whole configuration
    return folder, True


def _through(found: Finding, base: Path, is_built: bool, folder: Path) -> None:
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(base=base, rows=_write_rows(folder), steps=STEPS))
    found.stage = "plan"
    plan = make_plan(load_recipe(recipe, ()))
    found.trainable, found.left_out = plan.trainable, len(plan.left_out)
    assert is_built, "planned, though transformers cannot make it"
    found.stage = "train"
    record = train(recipe, output=folder / "run")
    if record.parameters is None or record.parameters.trainable != plan.trainable:
        found.outcome, found.reason = "wrong", "the plan's count of parameters is not the run's"
        return
    found.notes += [text for text in record.warnings if "sample" in text]
    found.stage = "merge"
    merge_adapter(folder / "run", output=folder / "merged")
    found.stage = "compare"
    _compare(found, base, folder)


def _write_rows(folder: Path) -> Path:
    path = folder / "rows.jsonl"
    words = [text[1:] for text in PROMPTS[1].split(" ")] + PROMPTS[0].split(" ")
    with path.open("w") as file:
        for index in range(20):
            prompt = f"Entry {index}: " + " ".join(words[: 2 + index % 7])
            file.write(json.dumps({"prompt": prompt, "completion": " " + " ".join(words[index % 9 :])}) + "\n")
    return path


def _told(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]} ({Path(last.filename).name}:{last.lineno})"


# -- comparisons ---------------------------------------------------------------------------------------------------


def _compare(found: Finding, base_folder: Path, folder: Path) -> None:
    """Merged and reloaded against base + adapter; the base's own causality and padding; cached against uncached."""
    tuned = open_adapter(folder / "run", base=str(base_folder), device="cpu", threads=1).model.eval()
    base = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32).eval()
    merged = AutoModelForCausalLM.from_pretrained(folder / "merged", dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 1500, (1, 24), generator=generator)
    with torch.inference_mode():
        wrong = [
            *_merged_differs(_logits(base, ids), _logits(tuned, ids), _logits(merged, ids)),
            *_sees_later_tokens(base, ids),
            *_heeds_padding(base, ids),
        ]
        notes, cached = _cached_differs(base, tuned, ids[:, :8])
    found.notes += notes
    wrong += cached
    if wrong:
        found.outcome, found.reason = "wrong", "; ".join(wrong)


def _logits(model: Any, ids: Tensor, **more: Any) -> Tensor:
    answer: Tensor = model(input_ids=ids, use_cache=False, **more).logits[0].float()
    return answer


def _differ(one: Tensor, other: Tensor) -> float:
    """Largest difference relative to the largest logit; infinite where one is not finite."""
    value = float((one - other).abs().max() / max(1.0, float(other.abs().max())))
    return value if value == value else float("inf")


def _merged_differs(base: Tensor, tuned: Tensor, merged: Tensor) -> Iterator[str]:
    effect, difference = _differ(tuned, base), _differ(merged, tuned)
    if not effect > 0:
        yield "the adapter changes nothing"
    if not difference <= max(TOLERANCE, 0.0) or difference > max(1e-6, EFFECT_SHARE * effect):
        yield f"merged and reloaded differs by {difference:.2g}, the adapter changes {effect:.2g}"


def _sees_later_tokens(base: Any, ids: Tensor) -> Iterator[str]:
    other = ids.clone()
    other[0, -1] = (other[0, -1] + 7) % 1500
    difference = _differ(_logits(base, ids)[:-1], _logits(base, other)[:-1])
    if not difference <= TOLERANCE:
        yield f"the base sees later tokens ({difference:.2g}), and was trained"


def _heeds_padding(base: Any, ids: Tensor) -> Iterator[str]:
    """Right padding must change nothing at real positions; rows of a batch are padded so in training."""
    length = ids.shape[1]
    padded = torch.cat([ids, torch.zeros(1, 9, dtype=ids.dtype)], dim=1)
    mask = (torch.arange(padded.shape[1]) < length).long()[None]
    difference = _differ(_logits(base, padded, attention_mask=mask)[:length], _logits(base, ids))
    if not difference <= TOLERANCE:
        yield f"padded rows differ from unpadded ones ({difference:.2g}), and were trained"


def _cached_differs(base: Any, tuned: Any, ids: Tensor) -> tuple[list[str], list[str]]:
    """Notes on the base's own writing, and what the adapter's adds to it."""
    try:
        own = _cached_gap(base, ids)
    except Exception as error:  # whatever transformers raises
        return [f"the base's own generate fails: {_told(error)[:160]}"], []
    ours = _cached_gap(tuned, ids)
    if own > TOLERANCE:
        return [f"the base itself answers differently with a cache ({own:.2g})"], []
    return [], [f"writing with a cache differs by {ours:.2g}"] if not ours <= TOLERANCE else []


def _cached_gap(model: Any, ids: Tensor) -> float:
    """Logits while generating with a cache against those of the whole text in one pass without."""
    answer = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        do_sample=False,
        use_cache=True,
        return_dict_in_generate=True,
        output_logits=True,
        pad_token_id=0,
    )
    stepwise = torch.cat(answer.logits).float()
    whole = _logits(model, answer.sequences[:, :-1])[ids.shape[1] - 1 :]
    return _differ(stepwise, whole)


# -- processes -----------------------------------------------------------------------------------------------------


def in_child(name: str, *, seconds: int, gib: float) -> Finding:
    """`examine` in a forked process with bounds; what it says comes back through a file."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="architectures-") as scratch:
        folder = Path(scratch)
        child = os.fork()
        if child == 0:
            _live(name, folder, seconds=seconds, gib=gib)
        _, status = os.waitpid(child, 0)
        answer = folder / "finding.json"
        if answer.is_file():
            found = Finding(**json.loads(answer.read_text()))
        else:
            code = os.waitstatus_to_exitcode(status)
            found = Finding(name, "bound", reason=f"ended by {signal.Signals(-code).name if code < 0 else code}")
    found.seconds = round(time.monotonic() - started, 1)
    return found


def _live(name: str, folder: Path, *, seconds: int, gib: float) -> None:
    """The child's whole life; never returns."""
    try:
        signal.alarm(seconds)
        limit = int(gib * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        os.environ["PEFTCLI_CACHE"] = str(folder / "cache")
        with (folder / "log").open("w") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            found = examine(name, folder)
        (folder / "finding.tmp").write_text(json.dumps(asdict(found)))
        (folder / "finding.tmp").rename(folder / "finding.json")
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def table(found: Sequence[Finding]) -> str:
    """One line an architecture."""
    lines = []
    for item in found:
        said = "; ".join([*([" ".join(item.reason.split())] if item.reason else []), *item.notes])
        stage = "" if item.outcome == "complete" else f"at {item.stage}: "
        lines.append(f"{item.name:<26} {item.outcome:<9} {item.seconds:5.1f} s  {stage}{said}".rstrip())
    return "\n".join(lines)


def main() -> int:
    """Runs and prints; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="model types, with commas between")
    parser.add_argument("--json", type=Path, help="writes the table there too")
    parser.add_argument("--seconds", type=int, default=120, help="bound on the time of each")
    parser.add_argument("--gib", type=float, default=8.0, help="bound on the address space of each")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    wanted = [name for name in options.only.split(",") if name] or model_types()
    gc.freeze()
    found = []
    for name in wanted:
        found.append(in_child(name, seconds=options.seconds, gib=options.gib))
        print(table(found[-1:]), flush=True)
    counts = Counter(item.outcome for item in found)
    print(f"transformers {transformers.__version__}, torch {torch.__version__}: {len(found)} architectures")
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.most_common()))
    if options.json:
        options.json.write_text(json.dumps([asdict(item) for item in found], indent=1))
    return 10 if counts["wrong"] or counts["bug"] else 0


if __name__ == "__main__":
    sys.exit(main())
