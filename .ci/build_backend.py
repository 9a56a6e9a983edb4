"""The build backend: setuptools, with what it builds on the way kept out of the source tree.

`pip install .` builds in the tree, and setuptools leaves `build/lib` there: a copy that searches find, and that puts
modules which were removed since into the next wheel.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (  # noqa: F401  the other hooks are setuptools' own
    build_editable,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)


def build_sdist(sdist_directory: str, config_settings: dict[str, Any] | None = None) -> str:
    """Builds the source distribution, this file included; returns its name."""
    manifest = Path("MANIFEST.in")
    manifest.write_text("include .ci/build_backend.py\n", encoding="utf-8")
    try:
        return build_meta.build_sdist(sdist_directory, config_settings)
    finally:
        manifest.unlink()


def build_wheel(
    wheel_directory: str, config_settings: dict[str, Any] | None = None, metadata_directory: str | None = None
) -> str:
    """Builds the wheel; returns its name."""
    settings = dict(config_settings or {})
    given = settings.get("--global-option", [])
    with tempfile.TemporaryDirectory() as aside:
        own = ["build", f"--build-base={aside}"]
        settings["--global-option"] = [*([given] if isinstance(given, str) else given), *own]
        return build_meta.build_wheel(wheel_directory, settings, metadata_directory)
