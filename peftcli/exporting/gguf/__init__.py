"""GGUF, the files of llama.cpp: an adapter (`adapter.gguf`) or a whole model (`model.gguf`).

`layouts` says how llama.cpp stores each family's weights, `vocabulary` what it needs of a tokenizer, `facts` the
hyperparameters, `writing` puts tensors into a file one at a time, `proof` lets llama.cpp answer.
"""
