"""What every method's configuration has in common; free of torch.

A method's own `config.py` subclasses `MethodConfig`, states the facts of the method as class variables, and its fields
under the names that `adapter_config.json` uses. The docstring under each field is the only documentation source.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from peftcli.adapters.file_values import Bounds, as_switches, beyond_bounds
from peftcli.adapters.oddities import named, tell
from peftcli.errors import AdapterError, Fault

PEFT_LEVEL = "0.21.2"
"""The version of Hugging Face PEFT whose file format is written."""

COMMON_FILE_FIELDS: Mapping[str, Any] = {
    "auto_mapping": None,
    "base_model_name_or_path": None,
    "inference_mode": True,
    "peft_version": PEFT_LEVEL,
    "revision": None,
    "task_type": None,
}
"""Fields that every `adapter_config.json` carries beside `peft_type`, with the value written when nobody sets one."""

HEADS_FIELD = "modules_to_save"
"""The field that names modules trained whole beside a method."""
Kind = Literal["layers", "prompt", "selection"]
"""What a method trains: tensors that it adds to layers, a prompt that it adds, or tensors of the base that it selects."""


class MethodConfig(BaseModel):
    """Base of all method configurations: immutable, unknown fields refused."""

    # defaults too: one that is written out and read again must be the very value, a run is known by it
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, validate_default=True, use_attribute_docstrings=True
    )

    name: ClassVar[str]
    """Name in recipes; equals the folder name."""
    summary: ClassVar[str]
    """One line for `peft methods`."""
    kind: ClassVar[Kind]
    peft_type: ClassVar[str]
    """`peft_type` in `adapter_config.json`."""
    in_peft: ClassVar[bool] = False
    """Whether Hugging Face PEFT has the method, so that the files are its format exactly."""
    served_as_lora: ClassVar[bool] = False
    """Whether servers that take LoRA files (vLLM, SGLang) take this method's files as they are."""
    holds_pairs: ClassVar[bool] = False
    """Whether its files can hold any low-rank update of linear layers and embeddings, so that `peft convert` writes them:
    its method then has `of_pairs`."""
    learning_rate: ClassVar[float]
    """The rate that `training.learning_rate: auto` starts from, at a base of `learning_rate_width`."""
    learning_rate_width: ClassVar[int] = 64
    """Hidden size of the base that `learning_rate` was measured on."""
    learning_rate_exponent: ClassVar[float] = 0.5
    """`auto` multiplies the rate by (learning_rate_width / hidden size) to this power."""
    short_names: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Other names in recipes and the fields that each one sets, e.g. dora -> use_dora."""
    file_defaults: ClassVar[Mapping[str, Any]] = {}
    """Every further field of the reference's file with the reference's default: taken where a file lacks the field,
    written where this class has no field of that name."""
    refused_variants: ClassVar[Mapping[str, str]] = {}
    """Fields of the reference that switch on a variant which is not here, and the variant's name."""
    idle_variants: ClassVar[Mapping[str, str]] = {}
    """Fields of the reference that change no answer of a trained adapter, and why: a file loads without them."""
    file_bounds: ClassVar[Mapping[str, Bounds]] = {}
    """Fields whose numbers may lie further out in a file than in a recipe, and how far."""
    recipe_only: ClassVar[frozenset[str]] = frozenset()
    """Fields of this class that steer training and are not written to `adapter_config.json`."""
    beyond_peft: ClassVar[Mapping[str, Any]] = {}
    """Fields that the reference's file has no place for, and the value with which the reference would read such a file
    and answer otherwise."""
    layer_rules: ClassVar[frozenset[str]] = frozenset(
        {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"}
    )
    """Fields that say by a rule which layers are meant: two rules may mean the same layers, which only a model tells."""
    tokens_field: ClassVar[str | None] = None
    """The field that names tokens whose rows in the embeddings are trained; None where single rows cannot be."""
    tying_field: ClassVar[str | None] = None
    """The field that keeps tied embeddings one tensor while a whole one of them is trained."""
    trains_heads: ClassVar[bool] = False
    """Whether a head of labels is among what the method trains anyway."""
    size_fields: ClassVar[tuple[str, ...]] = ()
    """Fields whose number a layer's width limits (ranks, block sizes): a tiny base is made wide enough for them."""
    block_fields: ClassVar[tuple[str, ...]] = ()
    """Fields whose number counts blocks of the model: a tiny base then keeps as many as its original has."""
    free_text: ClassVar[tuple[str, ...]] = ()
    """Fields whose text may hold anything, `${...}` too."""
    foreign_names: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Field -> what other tools call it, for the message about an unknown key."""

    @classmethod
    def can_train_heads(cls) -> bool:
        """Whether a model's head of labels can be trained and saved with the adapter."""
        return cls.trains_heads or HEADS_FIELD in cls.model_fields

    def with_heads(self, heads: Iterable[str]) -> Self:
        """The configuration that also trains these modules whole, as a task with a head of its own needs."""
        if self.trains_heads:
            return self
        named = getattr(self, HEADS_FIELD) or []
        return self.model_copy(update={HEADS_FIELD: [*named, *(head for head in heads if head not in named)]})

    @classmethod
    def can_train_tokens(cls) -> bool:
        """Whether single rows of an embedding can be trained and saved with the adapter."""
        return cls.tokens_field is not None

    def trained_tokens(self) -> Mapping[str, list[int]] | list[int]:
        """Tokens whose rows are trained: of the input embedding, or by the name of the table."""
        return [] if self.tokens_field is None else getattr(self, self.tokens_field) or []

    def keeps_ties(self) -> bool:
        """Whether tied embeddings stay one tensor while a whole one of them is trained."""
        return self.tying_field is not None and bool(getattr(self, self.tying_field))

    def with_tokens(self, tables: Mapping[str, list[int]], *, alone: bool) -> Self:
        """The configuration that also trains these rows. `alone`: the only table is the input embedding."""
        assert self.tokens_field is not None, "asked of a method that can train single rows"
        given = getattr(self, self.tokens_field)
        if alone and not isinstance(given, dict):
            (ids,) = tables.values()
            rows: Any = [*(given or []), *(number for number in ids if number not in (given or []))]
        else:
            named = given if isinstance(given, dict) else dict.fromkeys(tables, given or [])
            rows = named | {
                name: [*named.get(name, []), *(number for number in ids if number not in named.get(name, []))]
                for name, ids in tables.items()
            }
        return self.model_copy(update={self.tokens_field: rows})

    def own_learning_rate(self) -> float:
        """The rate that this very configuration starts from; a method whose variants differ overrides it."""
        return self.learning_rate

    def tunable(self) -> Mapping[str, Sequence[Any]]:
        """Fields, and other values of theirs, that are worth trying once the rate is known; a method that has such overrides
        it. Sizes are none: they trade cost for quality, which nobody decides for a user."""
        return {}

    def to_recipe(self) -> dict[str, Any]:
        """The section as a recipe writes it: `type` first, then every field."""
        return {"type": self.name, **self.model_dump(mode="json")}

    def to_file(self, kept: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The document `adapter_config.json`, keys sorted; `kept` are fields read from a file that we have no use for."""
        own = {key: value for key, value in self.model_dump(mode="json").items() if key not in self.recipe_only}
        document = {**COMMON_FILE_FIELDS, **self.file_defaults, **own, **(kept or {}), "peft_type": self.peft_type}
        return dict(sorted(document.items()))

    @classmethod
    def from_file(cls, document: Mapping[str, Any], *, where: str) -> tuple[Self, dict[str, Any]]:
        """Reads a document in the file's schema; returns the configuration and the fields to keep for rewriting.

        Raises `AdapterError` for a wrong value or a variant of the reference that is not here.
        """
        idle = {field: value for field, value in cls.idle_fields(document).items() if field in document}
        config, kept = cls._read({**document, **idle}, where=where)
        return config, kept | {field: document[field] for field in idle}

    @classmethod
    def idle_fields(cls, document: Mapping[str, Any]) -> dict[str, Any]:
        """Fields that have no effect in a file, and what to read in their place; the file keeps them when written again.

        A recipe that sets one is told so; a file of the reference may carry them."""
        return {}

    @classmethod
    def _read(cls, document: Mapping[str, Any], *, where: str) -> tuple[Self, dict[str, Any]]:
        faults = [
            Fault(f"`{field}` asks for {variant}, which peftcli does not have", where)
            for field, variant in cls.refused_variants.items()
            if cls._switched_on(document, field)
        ]
        if faults:
            raise AdapterError("the adapter uses a variant that peftcli does not have", faults=faults)
        own = {name for name in cls.model_fields if name not in cls.recipe_only}
        values = {
            name: document.get(name, cls.file_defaults.get(name))
            for name in own
            if name in document or name in cls.file_defaults
        }
        kept = {key: value for key, value in document.items() if key not in own and key != "peft_type"}
        for field in [field for field in cls.idle_variants if cls._switched_on(document, field)]:
            tell(f"`{field}` is left out: {cls.idle_variants[field]}", where=where)
            kept.pop(field, None)
        known = own | {*COMMON_FILE_FIELDS, *cls.file_defaults, *cls.refused_variants, *cls.idle_variants}
        strange = [key for key, value in kept.items() if key not in known and value not in (None, False, [], {})]
        if strange:
            tell(f"fields of another version, which change nothing here: {named(strange)}", where=where)
        switches = as_switches(values, cls.model_fields)
        if switches:
            tell(f"neither true nor false; read as Hugging Face PEFT reads them: {named(switches)}", where=where)
        return cls._validated({**values, **switches}, where=where), kept

    @classmethod
    def _switched_on(cls, document: Mapping[str, Any], field: str) -> bool:
        value = document.get(field, cls.file_defaults.get(field))
        return value not in (None, False, [], cls.file_defaults.get(field))

    @classmethod
    def _validated(cls, values: Mapping[str, Any], *, where: str) -> Self:
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            odd = beyond_bounds(error, values, cls.file_bounds)
            if not odd:
                raise AdapterError(
                    "the adapter's configuration has invalid fields",
                    fix="the file is damaged, or of another version; get the adapter again",
                    faults=[Fault(fault, where) for fault in field_faults(error)],
                ) from error
        shown = ", ".join(f"{name}: {value}" for name, value in odd.items())
        tell(f"no recipe may say {shown}; loaded as the file has it", where=where)
        others = {name: value for name, value in values.items() if name not in odd}
        return cls._validated(others, where=where).model_copy(update=odd)


def field_faults(error: ValidationError) -> list[str]:
    """pydantic's errors, one for each field, with what was found there. A rule on several fields names them itself; what
    was found is then the whole document, and is left out."""
    groups: dict[str, list[Any]] = {}
    for item in error.errors():
        groups.setdefault(str(item["loc"][0]) if item["loc"] else "", []).append(item)
    found = [_reason(item) for item in groups.pop("", ())]
    for name, items in groups.items():
        # several errors of one field are the branches of what it may be
        place = ".".join(map(str, items[0]["loc"])) if len(items) == 1 else name
        found.append(f"`{place}`: {' or '.join(map(_reason, items))} (found {repr(items[0].get('input'))[:80]})")
    return [text[:300] for text in found]


def _reason(item: Any) -> str:
    return str(item["msg"]).removeprefix("Value error, ")
