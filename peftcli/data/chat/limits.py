"""What ends a rendering early: the template itself, a fault in it, or the bounds of its process."""

from __future__ import annotations


class TemplateRefusal(Exception):
    """The template itself refuses the conversation (`raise_exception`)."""


class TemplateFailure(Exception):
    """The template fails on a conversation. `line`: where in the template, 0 where that is not known."""

    def __init__(self, reason: str, line: int = 0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.line = line


class TemplateLimit(BaseException):
    """A template does more work than any conversation needs. Not an `Exception`: no handler on the way may keep it."""


OUT_OF_MEMORY = "it needs more memory than any conversation does"
"""What is said of a template that met its limit of memory."""
TOO_DEEP = "it is nested, or calls itself, too deeply"
"""What is said of a template that met its limit of nesting."""
BEGUN = b"."
"""What the process of templates writes in front of an answer for each row that it begins."""
