"""Runs a command and turns whatever stops it into a few lines and an exit code."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from peftcli.errors import PeftcliError, exit_code_of

_QUIET_LIBRARIES = {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The console script. Never returns: it exits with the contract's code."""
    for name, value in _QUIET_LIBRARIES.items():
        os.environ.setdefault(name, value)
    given = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(run(given))


def run(arguments: Sequence[str]) -> int:
    """Runs one command; returns its exit code after saying what went wrong."""
    from peftcli.cli.app import app, usage_errors

    as_json = "--json" in arguments
    try:
        found = app(list(arguments), prog_name="peft", standalone_mode=False)
        return found if isinstance(found, int) else 0
    except PeftcliError as error:
        return _report(error, as_json)
    except usage_errors() as error:
        return _report_usage(error, as_json)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the reader has gone (`peft schema | head`): nothing is left to say, and closing must not fail either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 0
    except Exception as error:
        return _report_bug(error, as_json)


def _report(error: PeftcliError, as_json: bool) -> int:
    code = exit_code_of(error)
    if os.environ.get("PEFTCLI_TRACEBACK") == "1":
        traceback.print_exception(error)
    if as_json:
        print(json.dumps({"error": error_document(error)}, indent=2, ensure_ascii=False))
    else:
        print(visible(error.render()), file=sys.stderr)
    return code


def error_document(error: PeftcliError) -> dict[str, Any]:
    """An error as JSON."""
    return {
        "type": type(error).__name__,
        "exit_code": exit_code_of(error),
        "message": error.message,
        "faults": [{"message": fault.message, "where": fault.where, "fix": fault.fix} for fault in error.faults],
    }


def visible(text: str) -> str:
    """Control and direction characters made visible, so that no file name or row can paint the terminal."""
    return "".join(c if c == "\n" or (c.isprintable() and c not in _DIRECTION) else f"\\x{ord(c):02x}" for c in text)


_DIRECTION = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f")


def _report_usage(error: Any, as_json: bool) -> int:
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    if not message:
        return int(getattr(error, "exit_code", 2))
    if as_json:
        print(json.dumps({"error": {"type": "UsageError", "exit_code": 2, "message": message, "faults": []}}, indent=2))
        return 2
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "peft"
    print(f"error: {visible(message)}\n  fix: `{command} --help` shows how it is used", file=sys.stderr)
    return 2


def _report_bug(error: Exception, as_json: bool) -> int:
    text = "".join(traceback.format_exception(error))
    if os.environ.get("PEFTCLI_TRACEBACK") == "1":
        print(text, file=sys.stderr)
    with tempfile.NamedTemporaryFile("w", prefix="peftcli-", suffix=".log", delete=False, encoding="utf-8") as log:
        log.write(text)
    message = f"a bug of ours: {type(error).__name__}: {error}"[:300]
    if as_json:
        document = {"type": "Bug", "exit_code": 1, "message": message, "faults": [], "log": log.name}
        print(json.dumps({"error": document}, indent=2))
    else:
        print(f"error: {visible(message)}\n  at {log.name}\n  fix: please report it with this file", file=sys.stderr)
    return 1
