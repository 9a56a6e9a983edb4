"""What decides how much memory a run takes."""

from __future__ import annotations

import math

from peftcli.adapters.starting import laid_out
from peftcli.data.prepare import PreparedData
from peftcli.models.load import DTYPES
from peftcli.models.structure import structure
from peftcli.models.weights import stored_bytes, weight_view
from peftcli.planning.adapted_base import AdaptedBase
from peftcli.planning.fit import Needs, longest_rows
from peftcli.planning.memory import Stored
from peftcli.planning.resolved import chosen_kernels
from peftcli.planning.step_memory import Rehearsal
from peftcli.recipe import Recipe


def needs_of(recipe: Recipe, base: AdaptedBase, data: PreparedData, device: str, dtype: str) -> Needs:
    """What decides how much memory the run takes: the model on the meta device in the types of training, and its rows."""
    skeleton = base.skeleton
    skeleton.to(DTYPES[dtype])
    blocks = structure(skeleton).blocks
    base_bytes = stored_bytes(skeleton, DTYPES[dtype])
    largest = max((math.prod(weight_view(module).shape) for module in structure(skeleton).linears.values()), default=0)
    # a packed matrix is unpacked for each product, one at a time
    dense_bytes = largest * DTYPES[dtype].itemsize if base.quantization is not None else 0
    num_parameters = sum(parameter.numel() for parameter in skeleton.parameters())
    adapter = laid_out(skeleton, base.method, base.start)
    tensors = adapter.trainable_parameters().values()
    trained = sum(tensor.nbytes for tensor in tensors)
    return Needs(
        rehearsal=Rehearsal(skeleton, adapter, base.task, blocks, chosen_kernels(recipe.training, base.counts)),
        stored=Stored(base_bytes, trained, trained, int(trained * recipe.training.optimizer.state_size), dense_bytes),
        num_parameters=num_parameters,
        largest_matrix=largest,
        train=longest_rows(data.train),
        validation=None if data.validation is None else longest_rows(data.validation),
        evaluation_rows=recipe.evaluation.batch_size,
        pad_token_id=int(base.tokenizer.pad_token_id or 0),
        device=device,
    )
