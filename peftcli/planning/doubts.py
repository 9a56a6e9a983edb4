"""What a plan warns of: settings without effect, and values that are rarely meant."""

from __future__ import annotations

from typing import Any

from torch import nn

from peftcli.data.config import AUTO
from peftcli.evaluation.generate import context_length
from peftcli.models.dequantized import packed_share
from peftcli.planning.resolved import Resolved
from peftcli.recipe import LoadedRecipe, Recipe

LEAST_PACKED = 0.5
"""Share of the weights of which a quantized base that packs fewer is told."""


def doubts_of(
    loaded: LoadedRecipe, skeleton: nn.Module, resolved: Resolved, added: int, *, validated: bool
) -> list[str]:
    """What is said of a recipe that can run: `added`, virtual tokens; `validated`, whether rows are held out."""
    recipe, found = loaded.recipe, []
    if resolved.quantization and (share := packed_share(skeleton)) < LEAST_PACKED:
        found.append(
            f"{share:.0%} of the base's weights are stored as {resolved.quantization}: fused experts, embeddings and heads "
            f"stay in {resolved.dtype}"
        )
    found += left_out_of_the_loss(skeleton)
    context = context_length(skeleton)
    if context is not None and recipe.data.max_length + added > context:
        length = f"data.max_length {recipe.data.max_length}" + (f" and {added} virtual tokens" if added else "")
        found.append(f"{length} exceed{'' if added else 's'} the base's context of {context}")
    if recipe.training.learning_rate == "auto" and "extrapolated" in resolved.learning_rate_note:
        found.append(f"learning rate {resolved.learning_rate:g}: {resolved.learning_rate_note}")
    if recipe.data.validation == AUTO and not validated:
        why = "a stream has no rows to spare" if recipe.data.streaming else "there are too few rows to spare any"
        found.append(f"nothing is held out, so nothing will be measured: {why}; name rows in `data.validation`")
    for name, section in (("checkpoint", recipe.checkpoint), ("evaluation", recipe.evaluation)):
        key, every = f"{name}.every", section.every
        # a default is no wish that a short run could disappoint
        if every and every > resolved.steps and loaded.is_wish(key):
            found.append(f"{key} {every} is more than the {resolved.steps} steps of this run")
    return [*found, *_idle_processes(recipe, resolved), *_idle_early_stopping(recipe, resolved.steps)]


def left_out_of_the_loss(skeleton: nn.Module) -> list[str]:
    """What transformers would add to the loss of this base: with `output_router_logits` a term that keeps a mixture's
    experts equally busy."""
    config: Any = getattr(skeleton, "config", None)
    text = config.get_text_config() if config is not None else None
    if not getattr(text, "output_router_logits", False):
        return []
    weight = getattr(text, "router_aux_loss_coef", None)
    return [
        f"the base asks for a load-balancing term in its loss (`output_router_logits`, weight {weight}): it is left out, "
        "and the loss is that of the tokens alone"
    ]


def idle_kernels(wanted: str | list[str], usable: frozenset[str]) -> list[str]:
    """Fast paths that the recipe names and nothing in the run can take."""
    names = [] if isinstance(wanted, str) else [name for name in wanted if name not in usable]
    return [f"training.kernels names {name}, which nothing in this run can use" for name in names]


def _idle_processes(recipe: Recipe, resolved: Resolved) -> list[str]:
    """Processes that have no part of a batch: what a recipe says of its parts is not changed behind its back."""
    rows, processes = recipe.training.batch_size, recipe.training.processes
    parts = -(-rows // resolved.micro_batch_size)
    # how many packs a batch will make is known when it is packed
    if recipe.data.packing or parts >= processes:
        return []
    most = max(1, -(-rows // processes))
    fix = f"lower training.micro_batch_size to {most}" if most < resolved.micro_batch_size else "raise batch_size"
    return [f"{processes - parts} of {processes} processes have no rows of a batch, which is cut into {parts}: {fix}"]


def _idle_early_stopping(recipe: Recipe, steps: int) -> list[str]:
    """A rule that cannot end a run of so many steps before its end: it has too few evaluations to wait for."""
    rule, every = recipe.training.early_stopping, recipe.evaluation.every
    chances = 0 if every is None else (steps - 1) // every
    if rule is None or chances >= rule.patience:
        return []
    seen = f"{chances} evaluation{'' if chances == 1 else 's'}"
    return [
        f"training.early_stopping cannot act: its patience is {rule.patience}, and this run of {steps} steps has {seen} "
        f"before its end; lower `evaluation.every`, or leave the rule out"
    ]
