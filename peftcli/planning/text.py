"""A plan as text, 80 columns."""

from __future__ import annotations

from peftcli.planning.plan import Plan
from peftcli.planning.sizes import size_text


def plan_text(plan: Plan) -> str:
    """What `peft plan` prints."""
    resolved = plan.resolved
    stored = f", linear layers stored as {resolved.quantization}" if resolved.quantization else ""
    share = 100 * plan.trainable / plan.total
    epochs = resolved.steps / resolved.steps_per_epoch
    lines = [
        f"{plan.name}: {plan.method} on {plan.base} ({plan.task})",
        "",
        f"data        {_split_text(plan, 'train')}",
    ]
    if plan.data.get("validation"):
        held_out = ", held out of train" if plan.held_out else ""
        lines.append(f"validation  {_split_text(plan, 'validation')}{held_out}")
    if plan.chat:
        lines.append(f"chats       {plan.chat}")
    lines += [
        *_padding_lines(plan),
        f"parameters  {plan.trainable:,} trainable of {plan.total:,} ({share:.2f} %), {len(plan.targets)} targets",
        f"steps       {resolved.steps:,} ({epochs:.3g} epochs of {resolved.steps_per_epoch:,}),"
        f" warm-up {resolved.warmup_steps}",
        f"rate        {resolved.learning_rate:g} ({resolved.learning_rate_note})",
        f"device      {resolved.device}, {resolved.threads} threads, {resolved.precision}, base in {resolved.dtype}{stored},"
        f" micro-batch {resolved.micro_batch_size}",
        f"memory      about {size_text(plan.memory.peak_bytes)} at the peak, estimated:",
    ]
    parts = {key.removesuffix("_bytes"): value for key, value in plan.memory.to_dict().items() if "peak" not in key}
    lines += [f"  {name:<11} {size_text(value)}" for name, value in parts.items() if value]
    lines += [
        f"  evaluation takes about {size_text(plan.memory.evaluation_peak_bytes)},"
        f" a merge about {size_text(plan.memory.merge_peak_bytes)}",
        *(f"chosen      {note}" for note in plan.chosen),
    ]
    lines.append(
        f"disk        adapter {size_text(plan.adapter_disk_bytes)},"
        f" checkpoints up to {size_text(plan.checkpoint_disk_bytes)}"
    )
    return "\n".join([*lines, *(f"warning: {warning}" for warning in plan.warnings)])


def _padding_lines(plan: Plan) -> list[str]:
    padding = plan.padding
    if padding is None:
        return []
    told = f"{100 * padding.unpacked:.1f} % of the tokens of a forward pass"
    return [f"padding     {told if padding.packed is None else f'{100 * padding.packed:.1f} %, {told} unpacked'}"]


def _split_text(plan: Plan, split: str) -> str:
    facts = plan.data[split]
    text = f"{facts['rows']:,} rows, {facts['tokens']:,} tokens, {facts['trained_tokens']:,} trained"
    dropped = facts.get("dropped") or {}
    if dropped:
        text += "; dropped " + ", ".join(f"{count:,} ({reason})" for reason, count in dropped.items())
    return text
