"""One module a container: each yields chunks of rows with their line (or row) numbers and logs what it cannot read.

Our own and not those of `datasets` or pandas: these stop at the first row that they cannot read and do not say on which
line a row stood, and `datasets` copies everything first. Here the bytes that are read are the bytes that are hashed.
"""
