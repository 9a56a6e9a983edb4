"""Names of a chat template's variables."""

from __future__ import annotations

DAY_VARIABLE = "strftime_now"
"""What templates ask for today's date with; as a setting, the date itself."""
# a fixed day: a prompt that held today's date would make two equal runs differ
FIXED_DAY = "2024-07-26"
"""What templates get when they ask for today's date (ISO)."""
RESERVED = frozenset(("messages", "tools", "documents", "add_generation_prompt", "raise_exception"))
"""Variables that the conversation itself gives."""
GIVEN = RESERVED | frozenset(
    (
        *("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token"),
        *("range", "dict", "namespace", "joiner", "cycler", "lipsum", DAY_VARIABLE),
    )
)
"""Variables that every rendering gets; the others are for `model.chat_template_kwargs`."""
