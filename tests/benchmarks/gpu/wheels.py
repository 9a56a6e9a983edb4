"""Packages for a machine with a GPU where nothing can be downloaded: collected here, put in place there.

    make gpu-wheels                        fills build/wheels, on a machine that reaches the package index
    make gpu PYTHON=python3 WHEELS=build/wheels

Collected is what a machine with torch, transformers, accelerate and their needs usually lacks: what peftcli imports
beyond them, and what the parts compare with. Wheels weigh, and what can be carried is bounded: of bitsandbytes only the
library of one CUDA version is kept (43 MB become 3), nothing is taken that peftcli imports only for files of other
formats (datasets, pyarrow, pandas), and the sum is checked. Put in place is only what the Python there lacks or has too
old; a wheel is unpacked, so no installer is needed.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path

NEEDED = ("pydantic", "pydantic-core", "annotated-types", "typing-inspection", "typing-extensions", "typer", "rich",
          "shellingham", "click", "annotated-doc", "markdown-it-py", "mdurl", "pygments", "jinja2", "markupsafe", "pyyaml",
          "ftfy", "wcwidth",
          "peft", "bitsandbytes", "pytorch-optimizer")  # fmt: skip
"""Without their own needs, which are named too: pip would fetch torch for them."""
MINIMUM = {"pydantic": "2.10", "typer": "0.15", "rich": "13", "jinja2": "3.1.5", "pyyaml": "6.0",
           "typing-extensions": "4.15"}  # fmt: skip
PAIRS = {"pydantic": "pydantic-core"}
"""Package -> the other one that must come from the same wheels: it asks for that very version."""
LIMIT_BYTES = 48 << 20
GLIBC = range(39, 16, -1)
COMMIT_NAME = "COMMIT"
_CUDA_LIBRARY = re.compile(r"bitsandbytes/libbitsandbytes_(?!cpu)\w+\.so")


def collect(folder: Path, python: str, cuda: str) -> str:
    """Downloads the wheels into `folder`; returns a line on what they weigh. `cuda`: as `13.0`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in NEEDED:
        _download(_asked(name), folder, python)
    for wheel in folder.glob("pydantic-*.whl"):
        core = re.search(r"^Requires-Dist: pydantic-core==(\S+)", _metadata_text(wheel), re.MULTILINE)
        if core is not None:
            for other in folder.glob("pydantic_core-*.whl"):
                other.unlink()
            _download(f"pydantic-core=={core.group(1)}", folder, python)
    for wheel in folder.glob("bitsandbytes-*.whl"):
        _keep_one_library(wheel, f"libbitsandbytes_cuda{cuda.replace('.', '')}.so")
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    (folder / COMMIT_NAME).write_text(f"{commit}\n", encoding="utf-8")
    total = sum(path.stat().st_size for path in folder.iterdir())
    if total > LIMIT_BYTES:
        raise SystemExit(f"the wheels weigh {total:,} bytes, more than the {LIMIT_BYTES:,} that can be carried")
    return f"{len(list(folder.glob('*.whl')))} wheels, {total / 2**20:.1f} MiB, in {folder}"


def _asked(name: str) -> str:
    return f"{name}>={MINIMUM[name]}" if name in MINIMUM else name


def _download(requirement: str, folder: Path, python: str) -> None:
    platforms = [f"--platform=manylinux_2_{number}_x86_64" for number in GLIBC] + ["--platform=manylinux2014_x86_64"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
               "--only-binary=:all:", f"--python-version={python}", "--implementation=cp", *platforms,
               "--dest", str(folder), requirement]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"no wheel of {requirement}: {done.stderr.strip()[-300:]}")


def _keep_one_library(wheel: Path, library: str) -> None:
    """Writes a wheel anew without the libraries for other GPUs; those are loaded by name, one of them at most."""
    with zipfile.ZipFile(wheel) as source:
        names = source.namelist()
        if f"bitsandbytes/{library}" not in names:
            there = ", ".join(Path(name).name for name in names if _CUDA_LIBRARY.fullmatch(name))
            raise SystemExit(f"{wheel.name} has no {library}: choose the CUDA version among {there}")
        dropped = {name for name in names if _CUDA_LIBRARY.fullmatch(name) and not name.endswith(f"/{library}")}
        smaller = wheel.with_suffix(".part")
        with zipfile.ZipFile(smaller, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as target:
            for name in names:
                if name in dropped:
                    continue
                data = source.read(name)
                if name.endswith(".dist-info/RECORD"):
                    lines = data.decode().splitlines(keepends=True)
                    data = "".join(line for line in lines if line.split(",")[0] not in dropped).encode()
                target.writestr(name, data)
    smaller.replace(wheel)


# -- on the machine without a network --------------------------------------------------------------------------------


def install(wheels: Path, site: Path) -> str:
    """Unpacks into `site` what this Python lacks or has too old; returns a line on it."""
    found = {_name(wheel): wheel for wheel in sorted(wheels.glob("*.whl"))}
    if not found:
        raise SystemExit(f"no wheel lies in {wheels}: `make gpu-wheels` collects them")
    wanted = {name for name in found if _lacks(name)}
    wanted |= {PAIRS[name] for name in wanted if name in PAIRS} | {n for n, other in PAIRS.items() if other in wanted}
    shutil.rmtree(site, ignore_errors=True)
    site.mkdir(parents=True)
    for name in sorted(wanted & set(found)):
        _unpack(found[name], site)
    there = sorted(set(found) - wanted)
    return f"unpacked {', '.join(sorted(wanted)) or 'nothing'}; already here: {', '.join(there) or 'none of the rest'}"


def _name(wheel: Path) -> str:
    return wheel.name.split("-")[0].replace("_", "-").lower()


def _lacks(name: str) -> bool:
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return True
    return _numbers(version) < _numbers(MINIMUM.get(name, "0"))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def _unpack(wheel: Path, site: Path) -> None:
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory(dir=site.parent) as scratch:
        archive.extractall(scratch)
        folders = [path for path in Path(scratch).iterdir() if path.name.endswith(".data")]
        for data in folders:
            for kind in ("purelib", "platlib"):
                if (data / kind).is_dir():
                    shutil.copytree(data / kind, site, dirs_exist_ok=True)
            shutil.rmtree(data)  # scripts and headers: nothing here runs or includes them
        shutil.copytree(scratch, site, dirs_exist_ok=True)


def commit_of(wheels: Path) -> str | None:
    """The commit that the wheels were collected at; a copy of a working tree is often without its history."""
    path = wheels / COMMIT_NAME
    return path.read_text(encoding="utf-8").strip() or None if path.is_file() else None


def _metadata_text(wheel: Path) -> str:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return archive.read(name).decode("utf-8", errors="replace")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="3.12", help="of the machine with the GPU")
    parser.add_argument("--cuda", default="13.0", help="that its torch was built for")
    options = parser.parse_args()
    print(collect(options.folder, options.python, options.cuda))


if __name__ == "__main__":
    main()
