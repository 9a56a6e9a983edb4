"""Runs a command and turns whatever stops it into a few lines and an exit code."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
import tempfile
import traceback
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from peftcli import bounded_call, files
from peftcli.errors import (
    Fault,
    MemoryLimitError,
    ModelError,
    ModelWarning,
    PeftcliError,
    StorageError,
    exit_code_of,
)
from peftcli.redaction import redacted
from peftcli.streams import lasting_streams, open_missing_descriptors

_QUIET_LIBRARIES = {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    # threads that spin while they wait ruin a machine that has other work
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
}
INTERRUPTED = 130
_SURROUNDINGS = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ELOOP, errno.ENAMETOOLONG}
)
"""Of the system's errors, those that a user's disk and paths cause."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The console script. Never returns: it exits with the contract's code."""
    for name, value in _QUIET_LIBRARIES.items():
        # what the user has set stays
        os.environ.setdefault(name, value)
    open_missing_descriptors()
    given = list(sys.argv[1:] if arguments is None else arguments)
    code = run(given)
    if bounded_call.any_left_behind():
        _end_now(code)
    sys.exit(code)


def _end_now(code: int) -> NoReturn:
    """Ends this process without a word to its threads: one of them is in a library that goes on for hours, or that takes
    ever more memory."""
    for stream in (sys.stdout, sys.stderr):
        # whoever reads it may have gone
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def run(arguments: Sequence[str]) -> int:
    """Runs one command; returns its exit code after saying what went wrong, whether or not anybody can read it."""
    with lasting_streams():
        return _run(arguments)


def _run(arguments: Sequence[str]) -> int:
    from peftcli.cli.app import app, interruptions, usage_error

    # of the raw arguments: where the parser fails, no option has been read
    as_json = "--json" in arguments
    warnings.showwarning = _show_warning
    try:
        found = app(list(arguments), prog_name="peft", standalone_mode=False)
        if found == INTERRUPTED:
            # what newer parsers make of Ctrl-C
            print("interrupted", file=sys.stderr)
        return found if isinstance(found, int) else 0
    except PeftcliError as error:
        return _report(error, as_json)
    except usage_error() as error:
        return _report_usage(error, as_json)
    except interruptions():
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except (OSError, SystemExit) as error:
        # the parser turns a broken pipe into `SystemExit(1)`, with the pipe's error as its context
        if _is_broken_pipe(error) or _is_broken_pipe(error.__context__):
            return _reader_has_gone()
        if isinstance(error, SystemExit):
            return error.code if isinstance(error.code, int) else 0
        # any other, such as a file that we should have looked for, is a bug of ours
        if error.errno in _SURROUNDINGS:
            return _report(_storage_error(error), as_json)
        return _report_bug(error, as_json)
    except MemoryError:
        fix = "a smaller micro_batch_size or max_length, or gradient_checkpointing"
        return _report(MemoryLimitError("the host ran out of memory", fix=fix), as_json)
    except Exception as error:
        if _is_out_of_device_memory(error):
            fix = "free memory on the device, or choose a smaller base or batch"
            return _report(MemoryLimitError("the device ran out of memory", fix=fix), as_json)
        return _report_bug(error, as_json)
    except BaseException as error:
        # a library that is not written in Python gives up by what is no `Exception`
        return _report(_given_up(error), as_json) if _is_panic(error) else _report_bug(error, as_json)


def _is_panic(error: BaseException) -> bool:
    return type(error).__module__ == "pyo3_runtime"


def _given_up(error: BaseException) -> ModelError:
    return ModelError(
        f"a library failed: {' '.join(str(error).split())[:200]}",
        fix="most likely the tokenizer, on one of these texts; where the model is not yours, do not trust it",
    )


def _is_out_of_device_memory(error: Exception) -> bool:
    """Asked without importing torch: while it is not loaded, its memory cannot have run out."""
    if "torch" not in sys.modules:
        return False
    from peftcli.models.device import is_out_of_memory

    return is_out_of_memory(error)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    """What is odd about an adapter as one line; every other warning as Python shows it."""
    if issubclass(category, ModelWarning):
        print(f"warning: {redacted(str(message))}", file=sys.stderr, flush=True)
    else:
        print(warnings.formatwarning(message, category, filename, lineno), end="", file=sys.stderr)


def _storage_error(error: OSError) -> StorageError:
    """Of a path that lies where nobody looks before using it, such as below a folder without permission."""
    where = str(error.filename) if error.filename is not None else None
    return StorageError(
        f"a file cannot be used: {error.strerror}", where=where, fix="check the path, its permissions and the disk"
    )


def _is_broken_pipe(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno == errno.EPIPE


def _reader_has_gone() -> int:
    """`peft schema | head`: nothing is left to say, and closing stdout at the end must not fail either."""
    # the descriptor itself, for Python writes out what is left in its buffer once more as it ends
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _report(error: PeftcliError, as_json: bool) -> int:
    code = exit_code_of(error)
    if os.environ.get("PEFTCLI_TRACEBACK") == "1":
        print(redacted("".join(traceback.format_exception(error))), file=sys.stderr)
    if as_json:
        _print_json(error_document(error))
    else:
        print(redacted(error.render()), file=sys.stderr)
    return code


def error_document(error: PeftcliError) -> dict[str, Any]:
    """An error as JSON."""
    return {
        "type": type(error).__name__,
        "exit_code": exit_code_of(error),
        "message": redacted(error.message),
        "faults": [_masked_fault(fault) for fault in error.faults],
    }


def _masked_fault(fault: Fault) -> dict[str, Any]:
    parts = {"message": fault.message, "where": fault.where, "fix": fault.fix}
    return {name: text and redacted(text) for name, text in parts.items()}


def _print_json(document: dict[str, Any]) -> None:
    print(files.to_json({"error": document}).rstrip("\n"))


def _report_usage(error: Any, as_json: bool) -> int:
    """Wrong arguments: what is wrong and where help is. No arguments at all: the help itself."""
    message = str(error.format_message())
    if message.startswith("Usage:"):
        print(message)
        return 0
    # the parser's sentences begin with a capital, and ours come after `error: `
    message = message[0].lower() + message[1:] if message else "wrong arguments"
    if as_json:
        _print_json({"type": "UsageError", "exit_code": 2, "message": redacted(message), "faults": []})
        return 2
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "peft"
    fix = _as_override(message) or f"`{command} --help` shows how it is used"
    print(f"error: {redacted(message)}\n  fix: {fix}", file=sys.stderr)
    return 2


def _as_override(message: str) -> str | None:
    """What to write for an option that is a recipe key."""
    name = re.match(r"no such option:? '?--([\w-]+)", message)
    if name is None:
        return None
    from peftcli.recipe.keys import find_keys

    found = [key.name for key in find_keys(name[1])]
    return f"recipe keys are set by `--set {found[0]}=...`" if found else None


def _report_bug(error: BaseException, as_json: bool) -> int:
    text = redacted("".join(traceback.format_exception(error)))
    if os.environ.get("PEFTCLI_TRACEBACK") == "1":
        print(text, file=sys.stderr)
    # kept, for it is what the user sends in
    with tempfile.NamedTemporaryFile("w", prefix="peftcli-", suffix=".log", delete=False, encoding="utf-8") as log:
        log.write(text)
    # an exception's text may quote a whole file
    message = f"a bug in peftcli: {type(error).__name__}: {error}"[:300]
    if as_json:
        _print_json({"type": "Bug", "exit_code": 1, "message": redacted(message), "faults": [], "log": log.name})
    else:
        text = f"error: {redacted(message)}\n  at {log.name}\n  fix: please report it with this file"
        print(text, file=sys.stderr)
    return 1
