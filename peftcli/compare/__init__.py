"""`peft compare`: the same data, order and budget for several methods or settings, and what they are worth.

    recipe -> members (method x setting x seed) -> a run each, in a process of its own -> scores row by row
    -> compared in pairs -> the page, the recommended recipe

Every member is an ordinary run folder under `members/`; what one lacks is found by looking at it, so a comparison that
was stopped goes on where it stopped and trains nothing twice.
"""
