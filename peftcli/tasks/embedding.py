"""Tell what belongs together: one vector of each text, near those of its matches and far from all others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from peftcli.tasks.base import Batch, LossSum, RowScores, Seeded, Task, TrainingRow
from peftcli.tasks.config import EmbeddingConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

    from peftcli.data.encode.base import Encoding
    from peftcli.models.sentences import SentenceShape
    from peftcli.tasks.labels.answers import Prediction
    from peftcli.tasks.labels.labelled import Labelled


@dataclass(frozen=True)
class Embedding(Task):
    """Contrastive loss over the matches and negatives of the whole optimizer batch, and squared error of the cosine of
    texts with a score: the mean over rows."""

    name: ClassVar[str] = "embedding"
    auto_class: ClassVar[str] = "AutoModel"
    task_type: ClassVar[str | None] = "FEATURE_EXTRACTION"
    pipeline_tag: ClassVar[str | None] = "sentence-similarity"
    formats: ClassVar[tuple[str, ...]] = ("embedding",)
    loss_unit: ClassVar[str] = "per row"
    metric_needs: ClassVar[tuple[str, ...]] = ("losses", "vectors", "labels")
    default_metrics: ClassVar[tuple[str, ...]] = ("loss", "recall_at_1", "ndcg_at_10", "cosine_similarity", "spearman")
    options: ClassVar[str | None] = "embedding"
    reads_base: ClassVar[bool] = True
    compares_rows: ClassVar[bool] = True

    settings: EmbeddingConfig = field(default_factory=EmbeddingConfig)
    shape: SentenceShape | None = None
    """Settled once the base is known."""

    @property
    def encoding(self) -> Encoding:
        from peftcli.data.encode.base import Encoding
        from peftcli.data.encode.contrast import encode_contrast
        from peftcli.data.parts import keep_each_text
        from peftcli.data.rows import ContrastRow

        return Encoding(self.name, {ContrastRow: encode_contrast}, keep=keep_each_text, apart=True)

    def with_options(self, options: Any) -> Task:
        return replace(self, settings=options)

    def for_base(self, *folders: Path) -> Task:
        from peftcli.models.sentences import MEAN, SentenceShape, read_shape

        wanted = self.settings
        noted = None
        if wanted.pooling == "auto" or wanted.normalize == "auto":
            noted = next((found for folder in folders if (found := read_shape(folder)) is not None), None)
        known = noted or SentenceShape(MEAN, normalize=True)
        pooling = known.pooling if wanted.pooling == "auto" else wanted.pooling
        normalize = known.normalize if wanted.normalize == "auto" else wanted.normalize
        return replace(self, shape=SentenceShape(pooling, normalize))

    @property
    def settled_options(self) -> dict[str, Any]:
        """Pooling and normalising, which are the base's own unless the recipe says."""
        return {"embedding.pooling": self._shape.pooling, "embedding.normalize": self._shape.normalize}

    def files_beside(self, base: Path, width: int) -> dict[str, bytes]:
        from peftcli.models.sentences import shape_files

        return shape_files(self._shape, width, base)

    @property
    def _shape(self) -> SentenceShape:
        assert self.shape is not None, "told the base before anything is computed"
        return self.shape

    def require_fit(self, model: nn.Module, rows: Sequence[TrainingRow], *, pad_token_id: int, pads: bool) -> None:
        from peftcli.tasks.vectors.checks import require_texts_answered

        require_texts_answered(self, model, rows, pad_token_id=pad_token_id)

    def collate(self, rows: Sequence[TrainingRow], *, pad_token_id: int) -> Batch:
        """Every text a line, see `vectors.batches`."""
        from peftcli.tasks.vectors.batches import collate

        return collate(rows, pad_token_id=pad_token_id)

    def share(self, model: nn.Module, parts: Sequence[Batch], seeded: Seeded) -> Sequence[Batch]:
        from peftcli.tasks.vectors.sharing import shared

        return shared(model, parts, self.logits, self.settings.temperature, seeded)

    def weigh(self, batch: Batch) -> float:
        return float(len(batch["score"]))

    def targets_in(self, row: TrainingRow) -> int:
        return 1

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """The vectors of the texts, (texts, width)."""
        from peftcli.tasks.vectors.pooling import embed

        return embed(model, batch, self._shape.pooling)

    def vectors(self, model: nn.Module, batch: Batch) -> Tensor:
        from peftcli.tasks.vectors.pooling import unit

        found = self.logits(model, batch)
        return unit(found) if self._shape.normalize else found

    def loss(self, model: nn.Module, batch: Batch) -> LossSum:
        from peftcli.tasks.vectors.losses import row_losses
        from peftcli.tasks.vectors.sharing import GRADIENT, carried

        vectors = self.logits(model, batch)
        if GRADIENT in batch:
            return LossSum(carried(vectors, batch), self.weigh(batch))
        return LossSum(row_losses(vectors, batch, self.settings.temperature).sum(), self.weigh(batch))

    def score_rows(self, model: nn.Module, batch: Batch) -> RowScores:
        """The vectors of the rows; what they are worth is known once all are there."""
        from peftcli.tasks.vectors.scoring import row_scores

        return row_scores(self.logits(model, batch), batch)

    def settled(self, scores: RowScores) -> RowScores:
        from peftcli.tasks.vectors.scoring import settled

        return settled(scores, self.settings.temperature)

    def told(self, labelled: Labelled) -> list[Prediction]:
        from peftcli.tasks.labels.answers import whole_rows

        return whole_rows(labelled)


TASK = Embedding()
