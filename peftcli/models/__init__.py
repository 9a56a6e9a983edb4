"""Base models and tokenizers: where they come from, how they are built, and what their weights are.

The only place that knows families of models, errors of the Hub, and how releases of transformers spell things.
`source` finds a base, `load` and `tokenizer` read it, `skeleton` lays it out without weights, `structure` names its
parts, `weights` reads and writes a weight however it is stored, `trace` sees which parts take part in an answer.
Others ask these, and never look at a class name themselves.
"""
