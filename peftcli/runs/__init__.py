"""A run and its parts, which `peftcli/run.py` puts in order.

`assembly` and `attaching` make model, data and adapter; `place`, `folder` and `own_files` are where it lies and what in
there is ours; `draft` fills its record from left to right; `seeds` repeats it; `gates` holds it against its `expect`;
`locating` finds it again.
"""
