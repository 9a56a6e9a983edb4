"""`peft doctor`: what this machine has, and every problem with its fix."""

from __future__ import annotations

import os
import shutil
from importlib import metadata
from typing import Any

from packaging.requirements import Requirement

from peftcli.data.cache import TokenCache, default_cache_dir
from peftcli.lock.environment import summary_of_machine
from peftcli.planning.fit import total_memory_bytes
from peftcli.planning.machine import resolve_device, resolve_threads
from peftcli.planning.sizes import size_text

MINIMUM_FREE_BYTES = 2 << 30
OPTIONAL = {
    "bitsandbytes": "8-bit and paged optimizers (extra: gpu)",
    "pytorch_optimizer": "the rarer optimizers: lion, prodigy, schedule_free, ... (extra: optim)",
    "rouge_score": "metric rouge (extra: metrics)",
    "sacrebleu": "metric bleu (extra: metrics)",
    "zstandard": "reading .zst data (extra: zstd)",
}


def examine() -> dict[str, Any]:
    """Facts of the machine, and checks with severity `ok`, `note`, `warn` or `fail`."""
    device = resolve_device("auto")
    checks = [*_required_packages(), *_optional_packages(), _memory(device), _disk(), _threads(), _cache()]
    return {"environment": summary_of_machine(device), "checks": checks}


def _check(name: str, severity: str, message: str, fix: str | None = None) -> dict[str, Any]:
    return {"name": name, "severity": severity, "message": message, "fix": fix}


def _required_packages() -> list[dict[str, Any]]:
    found = []
    for text in metadata.requires("peftcli") or []:
        requirement = Requirement(text)
        # requirements of extras have a marker that names the extra, and are not required here
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            found.append(_check(requirement.name, "fail", "is missing", f"pip install '{requirement}'"))
            continue
        # a pre-release that somebody installed on purpose is judged by its number alone
        if requirement.specifier.contains(version, prereleases=True):
            found.append(_check(requirement.name, "ok", version))
        else:
            message = f"{version} is not {requirement.specifier}"
            found.append(_check(requirement.name, "fail", message, f"pip install '{requirement}'"))
    return found


def _optional_packages() -> list[dict[str, Any]]:
    found = []
    for name, purpose in OPTIONAL.items():
        try:
            found.append(_check(name, "ok", f"{metadata.version(name)}, {purpose}"))
        except metadata.PackageNotFoundError:
            found.append(_check(name, "note", f"not installed: {purpose}"))
    return found


def _memory(device: str) -> dict[str, Any]:
    return _check("memory", "ok", f"{size_text(total_memory_bytes(device))} on {device}")


def _disk() -> dict[str, Any]:
    free = shutil.disk_usage(os.getcwd()).free
    if free < MINIMUM_FREE_BYTES:
        return _check("disk", "warn", f"{size_text(free)} free here", "free some space before a long run")
    return _check("disk", "ok", f"{size_text(free)} free here")


def _threads() -> dict[str, Any]:
    allowed = resolve_threads("auto")
    wanted = os.environ.get("OMP_NUM_THREADS")
    # more threads than CPUs wait for each other, and a run takes several times as long
    if wanted is not None and wanted.isdigit() and int(wanted) > allowed:
        return _check(
            "threads", "warn", f"OMP_NUM_THREADS={wanted} on {allowed} CPUs", f"set OMP_NUM_THREADS={allowed}"
        )
    return _check("threads", "ok", f"{allowed} CPUs allowed")


def _cache() -> dict[str, Any]:
    found = TokenCache(default_cache_dir()).summary()
    where = _home_relative(str(found.folder))
    return _check("token cache", "ok", f"{size_text(found.bytes)} in {where}, encoded sources: {found.entries:,}")


def _home_relative(path: str) -> str:
    home = os.path.expanduser("~")
    # once, at the front: a folder deeper inside may have the same name
    return path.replace(home, "~", 1) if path.startswith(home + os.sep) else path


def clear_token_cache() -> int:
    """Empties the token cache and nothing else in its folder; returns the bytes that were freed."""
    return TokenCache(default_cache_dir()).clear().bytes


def examination_text(found: dict[str, Any]) -> str:
    """What `peft doctor` prints."""
    facts = found["environment"]
    lines = [f"python {facts['python']} on {facts['system']}, {facts['processor']}", f"device {facts['device']}", ""]
    width = max(len(check["name"]) for check in found["checks"])
    for check in found["checks"]:
        lines.append(f"{check['severity']:<4}  {check['name']:<{width}}  {check['message']}")
        if check["fix"]:
            lines.append(f"      fix: {check['fix']}")
    problems = [check for check in found["checks"] if check["severity"] in ("warn", "fail")]
    lines += ["", f"{len(problems)} problems" if problems else "no problem found"]
    return "\n".join(lines)
