"""The contract that every method must satisfy, as a suite that any package can run on its own method."""

from peftcli.testing.case import Case, Outcome
from peftcli.testing.contract import CHECKS, run_contract
from peftcli.testing.families import FAMILIES, tiny_model

__all__ = ["CHECKS", "FAMILIES", "Case", "Outcome", "run_contract", "tiny_model"]
