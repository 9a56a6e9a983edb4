"""The file of a recipe's own chat template."""

from __future__ import annotations

from pathlib import Path

from peftcli.data.chat_variables import check_template
from peftcli.errors import ModelError

MAX_BYTES = 64 << 10


def read_template_file(path: Path) -> str:
    """Its text, without a byte-order mark, which would stand in every prompt.

    Raises `ModelError` where the file is missing, too large, not UTF-8, or no template.
    """
    if not path.is_file():
        raise ModelError("no such chat template", where=str(path), fix="check `model.chat_template`")
    if path.stat().st_size > MAX_BYTES:
        raise ModelError("the chat template is larger than 64 KiB", where=str(path), fix="check the file")
    try:
        source = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ModelError("the chat template is not UTF-8", where=str(path), fix="save it as UTF-8") from error
    check_template(source, str(path))
    return source
