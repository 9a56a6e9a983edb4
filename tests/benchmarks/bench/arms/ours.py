"""peftcli's arm: the recipe, trained in this process."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from meter import Meter, read_job, write_result

meter = Meter()
job = read_job()
meter.watch_steps()


from peftcli import run as sentence  # noqa: E402

_attach = sentence.attach_method


def _attach_after_loading(assembly, *, resuming):  # type: ignore[no-untyped-def]
    meter.loaded()
    return _attach(assembly, resuming=resuming)


sentence.attach_method = _attach_after_loading
folder = Path(job["folder"], "run")
sentence.train(job["recipe"], overrides=job["overrides"], output=folder, replace=True)
lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
lines = [line for line in lines if line["event"] == "train"]
ends = [0, *(line["tokens"] for line in lines)]
tokens = [after - before for before, after in itertools.pairwise(ends)]
write_result(
    job,
    losses=[line["loss"] for line in lines],
    grad_norms=[line["grad_norm"] for line in lines],
    **meter.figures(tokens, job["warm_steps"]),
)
