"""The facts of a run before any weight is loaded, which `train` then follows to the letter.

`plan` gathers them, `memory` estimates what the run will need, `text` prints them, `sizes` reads and writes bytes.
"""
