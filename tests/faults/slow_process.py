"""`python slow_process.py ARGUMENTS...`: the command line, with a pause after each step so that a signal can meet it."""

from __future__ import annotations

import sys
import time

from peftcli.cli.entry import main
from peftcli.training.stepper import Stepper

take = Stepper.train_step


def taking_its_time(self: Stepper) -> None:
    take(self)
    time.sleep(2.0)


if __name__ == "__main__":
    Stepper.train_step = taking_its_time  # type: ignore[method-assign]
    main(sys.argv[1:])
