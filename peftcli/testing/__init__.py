"""The contract that every method must satisfy, as a suite that any package can run on its own method.

    outcomes = run_contract(Case({"type": "my_method", "r": 4}, "llama"))

`contract` is the table of checks, `families` the tiny models, `compatibility` the table of what works with what. Sections of
our own methods stand beside each, in `cases.py`.
"""

from peftcli.testing.case import Case, Outcome
from peftcli.testing.contract import CHECKS, run_contract
from peftcli.testing.families import FAMILIES, tiny_model

__all__ = ["CHECKS", "FAMILIES", "Case", "Outcome", "run_contract", "tiny_model"]
