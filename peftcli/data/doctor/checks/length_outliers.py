from __future__ import annotations

from peftcli.data.doctor.base import Check

CHECK = Check("warn", "")
