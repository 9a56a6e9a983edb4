"""What `fit` receives and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from peftcli.tasks.base import Batch, TrainingRow
from peftcli.training.checkpoint import CheckpointStore
from peftcli.training.config import CheckpointConfig, TrainingConfig
from peftcli.training.interfaces import (
    Collate,
    ComputeLoss,
    Emit,
    Evaluate,
    GetRows,
    KeepBatch,
    Order,
    Pack,
    Share,
    Trainable,
    WholeBatch,
    next_targets,
    parts_alone,
    target_weight,
)
from peftcli.training.progress import NoProgress, TrainingProgress
from peftcli.training.signals import StopRequest
from peftcli.training.training_state import TrainingState
from peftcli.training.world import ALONE, World


def _loss_goes_down(metric: str) -> bool:
    """Where nobody evaluates, no metric but the loss is asked about."""
    return False


def _no_event(event: str, step: int, **facts: Any) -> None:
    """Events are only written where somebody asked for them."""


def _nothing() -> None:
    """Where nobody waits for a run to begin."""


@dataclass
class FitSetup:
    """Everything that `fit` needs; resolved values only, nothing here is `auto`."""

    model: nn.Module
    """The base with the adapter attached, on the accelerator's device."""
    adapter: Trainable
    order: Order
    get_rows: GetRows
    """Row numbers to rows."""
    collate: Collate
    """Rows to a padded batch on the CPU."""
    compute_loss: ComputeLoss
    """Model and batch (still on the CPU) to the summed loss."""
    accelerator: Accelerator
    """From `build_accelerator`."""
    config: TrainingConfig
    total_steps: int
    """`config.num_steps(order.steps_per_epoch)`."""
    learning_rate: float
    micro_batch_size: int
    seed: int
    last_step: int | None = None
    """Stop after this step, with the schedule of all `total_steps`: the beginning of a run. None: run to its end."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    store: CheckpointStore | None = None
    """None keeps nothing on disk."""
    resume: bool = False
    """Go on from the newest good checkpoint of `store`; from the start where there is none at all."""
    evaluate: Evaluate | None = None
    """Called with the step (0: before training, the base) while model and adapter are in evaluation mode."""
    evaluate_every: int | None = None
    """In optimizer steps; None: only before the first step and after the last."""
    emit: Emit = _no_event
    """Usually an `EventLog`."""
    mend_log: Callable[[TrainingState], str | None] = lambda state: None
    """Called with the state that a resumed run goes on from; returns what of the log had to be mended, if anything."""
    progress: TrainingProgress = field(default_factory=NoProgress)
    stop: StopRequest | None = None
    """From an enclosing `stop_signals()`; None: `fit` listens itself."""
    pack: Pack | None = None
    """Puts several rows into one sequence; None: each row is one, padded by `collate`."""
    share: Share | None = None
    """Tells the parts of an optimizer batch what they have to know of each other, before the first of them has its loss."""
    blocks: Sequence[nn.Module] = ()
    """The model's layers, for gradient checkpointing."""
    has_begun_well: Callable[[], None] = _nothing
    """Called once in a run that is not resumed: when the longest batch has been tried and its first checkpoint is kept."""
    probe_rows: Sequence[int] = ()
    """The longest rows of the data; one micro-batch of them is tried before training."""
    may_stay_idle: frozenset[str] = frozenset()
    """Names of trainable tensors whose gradient may rightly be zero in the first steps."""
    keep_batch: KeepBatch | None = None
    """Called with step, row numbers and rows of a batch that made the numbers go wrong; returns where it was kept."""
    changes_logits: Callable[[Batch], bool] | None = None
    """Called after the first steps with a batch on the device: whether the adapter has an effect by now."""
    weigh: Callable[[Batch], float] = target_weight
    """The total loss weight of a collated batch, before its forward pass."""
    whole_batch: WholeBatch = parts_alone
    """Tells the parts of an optimizer step what their loss has to know of all of them; the model is in evaluation mode."""
    targets_in: Callable[[TrainingRow], int] = next_targets
    """Targets of a row that carry loss."""
    kernels: Collection[str] = ()
    """Names of the fast paths that the passes take."""
    world: World = ALONE
    """The processes that train together; the leading one keeps `store` and writes what is told."""
    higher_is_better: Callable[[str], bool] = _loss_goes_down
    """The direction of a metric by its reported name, which the metric's own file states."""

    @property
    def first_length(self) -> int:
        """Steps that the run was planned for at first: what a method plans by them stays when it is made longer."""
        lengths = self.config.lengths
        return lengths[0].planned if lengths else self.total_steps


@dataclass(frozen=True)
class FitResult:
    """What training did. The adapter holds the chosen state: the best evaluation's, or the last step's."""

    steps: int
    epochs: float
    tokens: int
    """Non-padding tokens that were trained on, counted once a pass."""
    trained_tokens: int
    """Tokens that carried loss."""
    seconds: float
    tokens_per_second: float
    """Non-padding tokens over the optimizer steps after the first two; 0 where there were none."""
    steps_per_second: float
    losses: tuple[float, ...]
    """The loss of each step, exactly; NaN for a skipped one."""
    lines: tuple[dict[str, Any] | None, ...]
    """What each step logged beside its loss; None for one that was skipped, or taken by an older version."""
    evaluations: dict[int, dict[str, float | None]]
    """Metrics by step."""
    chosen_step: int
    """The step whose adapter was kept."""
    stopped_early: bool
    micro_batch_size: int
    warnings: tuple[str, ...]
    resumed_from: int | None = None
    kernels: dict[str, str] = field(default_factory=dict)
    """Name of each fast path that was switched on -> where it was taken."""
    compiled: str | None = None
    """How many layers were compiled into how many functions; None where none was to be."""
    chosen_state: dict[str, Tensor] = field(default_factory=dict, repr=False)
    """The adapter's tensors at `chosen_step`, on the CPU."""
