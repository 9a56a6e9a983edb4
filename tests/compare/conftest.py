"""Members that run in this process, which is warm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from peftcli.cli.entry import run as peft
from peftcli.compare import session
from peftcli.errors import Interrupted


class Commands(list[list[str]]):
    """The commands that a comparison gave, which ran here."""

    stop_after: int | None = None
    """The comparison is interrupted, as by a signal, before it gives more than so many commands."""
    codes: Callable[[list[str]], int | None] = staticmethod(lambda arguments: None)
    """The exit code of a command that is not run at all."""

    def run(self, commands: Sequence[Sequence[str]], places: Any, *, begun: Any, ended: Any) -> None:
        for number, given in enumerate(commands):
            if len(self) == self.stop_after:
                raise Interrupted("stopped", signal_number=15)
            begun(number)
            arguments = list(given)
            self.append(arguments)
            code = self.codes(arguments)
            if not ended(number, peft(arguments) if code is None else code):
                break

    @property
    def trained(self) -> list[str]:
        """Names of the run folders, in order."""
        return [Path(command[command.index("--output") + 1]).name for command in self if "--output" in command]


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    given = Commands()
    monkeypatch.setattr(session, "run_commands", given.run)
    return given
