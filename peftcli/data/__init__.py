"""Sources, formats, chat rendering, the loss mask and its proof, mixing, the doctor, and the token cache.

A row's way: `readers/` (bytes -> columns), `formats/` (columns -> a row of `rows`), `chat/` and `encode/` (row -> tokens
and loss weights), `store` and `cache`, `mixing` and `order`; `prepare` is the whole of it, `doctor/` looks at every step.
How to add a format or a check: README.md, "Add a format" and "Add a data check".
"""
