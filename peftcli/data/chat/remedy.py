"""Which variable of the template would make training and inference agree; found by trying, not by its name."""

from __future__ import annotations

from peftcli.data.chat.answers import locate
from peftcli.data.chat.borders import Borders
from peftcli.data.chat.conversation import Conversation
from peftcli.data.chat.limits import TemplateFailure, TemplateRefusal
from peftcli.data.chat.names import GIVEN
from peftcli.data.faults import RowFault


def remedy_for(conversation: Conversation, number: int, check: str, borders: Borders) -> str:
    """`; set model.chat_template_kwargs: ...` with a setting under which the check does not fire, or nothing."""
    # variables that the conversation itself gives are not for a recipe to set
    for name in sorted(conversation.template.reads - GIVEN):
        for value in (False, True):
            if _mends(conversation, number, check, borders, name, value):
                return f"; set `model.chat_template_kwargs: {{{name}: {str(value).lower()}}}`"
    return ""


def _mends(conversation: Conversation, number: int, check: str, borders: Borders, name: str, value: bool) -> bool:
    other = conversation.under({name: value})
    if other is None:
        return False
    try:
        answer = locate(other, number, borders)
    except (RowFault, TemplateRefusal, TemplateFailure):
        return False
    # neither fault may be left: one setting may exchange the one for the other
    return not any(found in ("prompt-mismatch", "empty-thought") for found, _ in answer.hits)
