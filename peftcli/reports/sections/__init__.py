"""The sections of a report page, one module each: a function from facts to markup, or None when it has none."""
