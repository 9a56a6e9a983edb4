"""Fields of LoRA (arXiv:2106.09685) and the variants that share its files, under the names of `adapter_config.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from peftcli.adapters.file_values import ANY_NUMBER, SHARE, Bounds
from peftcli.adapters.methods.lora.file_fields import FILE_DEFAULTS, IDLE_VARIANTS, REFUSED_VARIANTS
from peftcli.adapters.oddities import tell
from peftcli.adapters.target_config import TARGET_FOREIGN_NAMES, TargetedConfig
from peftcli.errors import AdapterError, FieldFault

REFUSED_INITS: Mapping[str, str] = {"corda": "CorDA", "loftq": "LoftQ"}
TRAINING_INITS: Mapping[str, str] = {"mica": "MiCA starts B from the weight and trains A alone"}
"""Starts that leave nothing behind but A and B, and are not here."""

MLX_NAMES: Mapping[str, str] = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight"}
"""Names that mlx-lm gives the halves of a pair, which stand transposed there -> ours."""

REFERENCE_SCALE = 2.0
"""The scale lora_alpha / r that the method's learning rate was measured at."""
START_FACTORS: Mapping[str, float] = {"pissa": 0.65, "olora": 0.3, "lora_ga": 0.3, "eva": 0.35}
"""Starts that are large already learn at a lower rate: the factor, measured likewise."""

BlockRange = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)]

Start = Literal["gaussian", "orthogonal", "pissa", "olora", "eva", "lora_ga", "loftq"]
RandomPissa = Annotated[str, Field(pattern=r"^pissa_niter_[1-9]\d{0,2}$")]


class EvaConfig(BaseModel):
    """How `init_lora_weights: eva` (arXiv:2410.07170) reads the activations."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    rho: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.0
    """A layer's rank may grow to rho * r while others shrink; 1 keeps every rank, and the count of parameters."""
    tau: Annotated[float, Field(gt=0, le=1)] = 0.99
    """Cosine similarity between two batches' components above which they count as settled."""
    use_label_mask: bool = True
    """Look only at tokens that are trained on."""
    label_mask_value: int = -100
    """The label that stands for "not trained on" in the reference's batches; ours carry weights instead."""
    whiten: bool = False
    """Divide each component by its singular value."""
    adjust_scaling_factors: bool = True
    """Keep lora_alpha / r as it was where a rank changes."""


class LoraGaConfig(BaseModel):
    """How `init_lora_weights: lora_ga` (arXiv:2407.05000) turns the first gradient into a pair."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    direction: Literal["ArBr", "A2rBr", "ArB2r"] = "ArB2r"
    """Which singular vectors start A and B: both the first r, or one of them the next r."""
    scale: Literal["stable", "weight_svd", "gd_scale", "unit"] = "stable"
    """Size of the start: by the width (stable), by the weight's largest singular value, by the update, or one."""
    stable_gamma: Annotated[int, Field(ge=1)] = 16
    """Divisor of the stable size."""


class LoraConfig(TargetedConfig):
    """Low-rank adaptation: y = W x + (lora_alpha / r) B A x."""

    name: ClassVar[str] = "lora"
    summary: ClassVar[str] = (
        "low-rank update B A of each linear layer, with its variants (DoRA, PiSSA, EVA, LoRA+, ...)"
    )
    peft_type: ClassVar[str] = "LORA"
    in_peft: ClassVar[bool] = True
    served_as_lora: ClassVar[bool] = True
    holds_pairs: ClassVar[bool] = True
    learning_rate: ClassVar[float] = 5e-3
    foreign_names: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **TARGET_FOREIGN_NAMES,
        "r": ("lora_r", "lora_rank", "rank"),
        "lora_alpha": ("alpha", "lora_scaling"),
        "lora_dropout": ("dropout",),
        "use_dora": ("peft_use_dora", "lora_use_dora"),
        "use_rslora": ("peft_use_rslora", "lora_use_rslora"),
    }
    size_fields: ClassVar[tuple[str, ...]] = ("r",)
    tokens_field: ClassVar[str | None] = "trainable_token_indices"
    tying_field: ClassVar[str | None] = "ensure_weight_tying"
    short_names: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "dora": {"use_dora": True},
        "rslora": {"use_rslora": True},
        "pissa": {"init_lora_weights": "pissa"},
        "olora": {"init_lora_weights": "olora"},
        "eva": {"init_lora_weights": "eva"},
        "lora_ga": {"init_lora_weights": "lora_ga"},
        "loftq": {"init_lora_weights": "loftq"},
        "lora_plus": {"loraplus_lr_ratio": 4.0},
        "lora_fa": {"freeze_a": True},
    }
    file_defaults: ClassVar[Mapping[str, Any]] = FILE_DEFAULTS
    file_bounds: ClassVar[Mapping[str, Bounds]] = {
        "lora_alpha": ANY_NUMBER,
        "alpha_pattern": ANY_NUMBER,
        "lora_dropout": SHARE,
    }
    refused_variants: ClassVar[Mapping[str, str]] = REFUSED_VARIANTS
    idle_variants: ClassVar[Mapping[str, str]] = IDLE_VARIANTS
    recipe_only: ClassVar[frozenset[str]] = frozenset({"loraplus_lr_ratio", "freeze_a"})

    r: Annotated[int, Field(ge=1)] = 16
    """Rank of the update."""
    lora_alpha: Annotated[int | float, Field(gt=0, allow_inf_nan=False)] = 32
    """Numerator of the scale lora_alpha / r."""
    lora_dropout: Annotated[int | float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the input of the update, while training."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which of the base's biases are trained too."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(r) instead (arXiv:2312.03732)."""
    use_dora: bool = False
    """Learn each row's length apart from its direction (DoRA, arXiv:2402.09353)."""
    lora_bias: bool = False
    """Give B a bias of its own."""
    init_lora_weights: bool | Start | RandomPissa = True
    """Start: true (A Kaiming-uniform, B zero), gaussian (A normal with deviation 1/r, B zero), orthogonal, from the
    weight (pissa, pissa_niter_N, olora), from data (eva) or gradients (lora_ga), from what quantizing the base lost
    (loftq), or false (both random)."""
    eva_config: EvaConfig | None = None
    """Details of `init_lora_weights: eva`."""
    lora_ga_config: LoraGaConfig | None = None
    """Details of `init_lora_weights: lora_ga`."""
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Other ranks for some layers: end of a path, or regular expression -> r. The first match counts."""
    alpha_pattern: dict[str, Annotated[int | float, Field(gt=0, allow_inf_nan=False)]] = Field(default_factory=dict)
    """Other lora_alpha for some layers, likewise."""
    trainable_token_indices: list[Annotated[int, Field(ge=0)]] | dict[str, list[Annotated[int, Field(ge=0)]]] | None = (
        None
    )
    """Tokens whose embedding rows are trained: ids for the input embedding, or embedding name -> ids."""
    layer_replication: list[BlockRange] | None = None
    """Grow the model by repeating blocks: ranges [first, end) of its blocks, one after another. Copies share the base's
    weights and have updates of their own."""
    target_parameters: list[str] | None = None
    """Weights that belong to no linear layer, by the end of their path: fused experts of a mixture of experts."""
    ensure_weight_tying: bool = False
    """Where input and output embedding are one tensor, keep them one while they are adapted or trained."""
    loraplus_lr_ratio: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """LoRA+ (arXiv:2402.12354): B learns at this multiple of A's learning rate."""
    freeze_a: bool = False
    """LoRA-FA (arXiv:2308.03303): the half of each pair that starts at random stays as drawn, only the other learns."""

    def own_learning_rate(self) -> float:
        # measured: the best rate falls with the root of the scale, and with that of B's lead over A (LoRA+)
        scale = self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)
        lead = self.loraplus_lr_ratio or 1.0
        how = self.init_lora_weights
        start = START_FACTORS.get(how.split("_niter")[0], 1.0) if isinstance(how, str) else 1.0
        return self.learning_rate * start * math.sqrt(REFERENCE_SCALE / (scale * lead))

    def tunable(self) -> Mapping[str, Sequence[Any]]:
        ratio = self.loraplus_lr_ratio
        return {} if ratio is None else {"loraplus_lr_ratio": (ratio / 4, ratio * 4)}

    @property
    def shifts_base(self) -> bool:
        """Whether the start moves the base, so that its frozen copy is subtracted."""
        how = self.init_lora_weights
        return isinstance(how, str) and (how in ("olora", "lora_ga") or how.startswith("pissa"))

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if self.use_dora and self.lora_bias:
            raise FieldFault("lora_bias does not go with use_dora: the bias has no part in a row's direction")
        if self.freeze_a and self.loraplus_lr_ratio is not None:
            raise FieldFault("loraplus_lr_ratio has no effect with freeze_a: only one half of each pair learns")
        if self.init_lora_weights == "orthogonal":
            odd = sorted({r for r in (self.r, *self.rank_pattern.values()) if r % 2})
            if odd:
                raise FieldFault(f"init_lora_weights: orthogonal needs even ranks, found {', '.join(map(str, odd))}")
        for field, start in (("eva_config", "eva"), ("lora_ga_config", "lora_ga")):
            if getattr(self, field) is not None and self.init_lora_weights != start:
                raise FieldFault(f"{field} has no effect without init_lora_weights: {start}")
        if self.target_parameters and (self.use_dora or self.lora_bias or self.lora_dropout):
            raise FieldFault("target_parameters cannot be combined with use_dora, lora_bias or lora_dropout")
        return self

    def to_file(self, kept: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The document; of a start by EVA with the values that it had, which the reference misses aloud."""
        document = super().to_file(kept)
        if not kept and self.init_lora_weights == "eva" and self.eva_config is None:
            document["eva_config"] = EvaConfig().model_dump(mode="json")
        return document

    def doubled(self) -> LoraConfig:
        """The plain LoRA of twice the rank that stands for a shifted start: A' = [A; A0], B' = [B, -B0], same scale."""
        factor = math.sqrt(2) if self.use_rslora else 2
        return self.model_copy(
            update={
                "r": 2 * self.r,
                "lora_alpha": factor * self.lora_alpha,
                "rank_pattern": {key: 2 * r for key, r in self.rank_pattern.items()},
                "alpha_pattern": {key: factor * alpha for key, alpha in self.alpha_pattern.items()},
                "init_lora_weights": True,
                "lora_ga_config": None,
            }
        )

    @classmethod
    def idle_fields(cls, document: Mapping[str, Any]) -> dict[str, Any]:
        how = document.get("init_lora_weights")
        empty = {"megatron_config": None} if document.get("megatron_config") == {} else {}
        return {f"{start}_config": None for start in ("eva", "lora_ga") if how != start} | empty

    @classmethod
    def from_file(cls, document: Mapping[str, Any], *, where: str) -> tuple[Self, dict[str, Any]]:
        """As in `MethodConfig`; starts that peftcli does not have are refused by name, but for those that only training
        sees."""
        how = document.get("init_lora_weights")
        if isinstance(how, str):
            how = how.lower()
            if how in REFUSED_INITS:
                raise AdapterError(
                    f"`init_lora_weights` asks for {REFUSED_INITS[how]}, which peftcli does not have", where=where
                )
            if how in TRAINING_INITS:
                tell(f"`init_lora_weights: {how}` is left out: {TRAINING_INITS[how]}", where=where)
            document = {**document, "init_lora_weights": True if how in TRAINING_INITS else how}
        return super().from_file(document, where=where)
