"""Tools that a row describes and its chat template has no place for."""

from __future__ import annotations

from peftcli.data.doctor.base import Check

# counted while conversations are rendered
CHECK = Check("fail", "tools that the chat template leaves out; `checks: {lost-tools: warn}` trains without them")
