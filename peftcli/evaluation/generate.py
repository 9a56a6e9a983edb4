"""Text written by a model: batched with padding on the left, or one answer as it is written."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from peftcli.adapters.surgery import attached, disabled
from peftcli.data.asking import text_of
from peftcli.errors import DataError, Fault, ModelError, NumericalError
from peftcli.evaluation.config import GenerationConfig
from peftcli.evaluation.memory import memory_errors
from peftcli.evaluation.own_reading import as_trained
from peftcli.evaluation.padding import batches
from peftcli.evaluation.prompts import stop_token_ids
from peftcli.evaluation.sharing import ALONE, Sharing, turns
from peftcli.models.device import is_out_of_memory
from peftcli.models.modes import evaluating
from peftcli.models.structure import input_embedding

if TYPE_CHECKING:
    from peftcli.evaluation.constrained import JsonGrammar

Stream = Callable[[str], None]
"""Called with each new piece of text as it is written."""
Progress = Callable[[int, int], None]

OPEN_BUDGET = 256
"""New tokens of an answer where the recipe leaves it open and no reference says how long answers are."""
_CONTEXT = 8  # prompt tokens that an answer is decoded after
_UNFINISHED = "\ufffd"  # what a tokenizer decodes half a character to


@dataclass(frozen=True)
class GeneratedAnswer:
    """One answer: its text without special tokens, its ids with the stop token, and why it ended."""

    text: str
    token_ids: list[int]
    finish: Literal["stop", "length"]


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    config: GenerationConfig,
    batch_size: int = 16,
    seed: int = 0,
    origins: Sequence[str] | None = None,
    budget: int = OPEN_BUDGET,
    chat: bool = True,
    progress: Progress | None = None,
    sharing: Sharing = ALONE,
) -> list[GeneratedAnswer]:
    """Answers to prompts (token ids), in their order.

    Prompts of like length share a batch; where the model reads its padding, those of the same length. Sampling draws
    from a stream that `seed` starts, and leaves the shared generators as they were; greedy answers do not depend on the
    batch up to rounding. `budget`: new tokens where the configuration says `auto`, fewer where the context ends before.
    `chat`: whether prompts went through the chat template, whose end of a turn then ends an answer too.
    `origins` name the rows in the `DataError` for prompts that are empty or do not fit the model's context together
    with their answer. `sharing`: the processes that each write some of the batches, and return all answers; sampled
    ones are written by each, since a batch draws from where the one before it has ended, and all by each that must keep
    in step, since no two answers are equally long.
    """
    check_fits(model, prompts, config=config, origins=origins)
    _check_known(model, tokenizer, prompts)
    answers: dict[int, GeneratedAnswer] = {}
    with _writing(model, tokenizer, config, prompts[0] if prompts else [], seed=seed, chat=chat) as stops:
        pad, grammar = _filler(tokenizer, stops), _grammar(tokenizer, config, stops)
        if config.do_sample or sharing.in_step:
            sharing = ALONE
        cut = batches(model, prompts, batch_size=batch_size, pad=pad)
        for chosen, _ in turns(cut, sharing):
            asked = [prompts[index] for index in chosen]
            written = _write_batch(
                model, asked, pad=pad, new_tokens=_new_tokens(model, asked, config, budget), grammar=grammar
            )
            for index, ids in zip(chosen, written, strict=True):
                answers[index] = _answer(_Decoder(tokenizer, _context(model, prompts[index]), stops), ids)
            if progress:
                progress(len(answers), len(prompts))
    answers = _of_all(answers, sharing)
    return [answers[index] for index in range(len(prompts))]


def _of_all(answers: dict[int, GeneratedAnswer], sharing: Sharing) -> dict[int, GeneratedAnswer]:
    """The answers of every process, by the number of their prompt."""
    if sharing.size == 1:
        return answers
    mine = [[number, answer.text, answer.token_ids, answer.finish] for number, answer in answers.items()]
    heard = sharing.meet("answers", mine)
    return {number: GeneratedAnswer(text, ids, finish) for each in heard for number, text, ids, finish in each}


def generate_stream(
    model: Any,
    tokenizer: Any,
    prompt: Sequence[int],
    *,
    config: GenerationConfig,
    stream: Stream,
    seed: int = 0,
    chat: bool = True,
) -> GeneratedAnswer:
    """One answer; `stream` receives its text in pieces, whose concatenation is the returned text. `chat`: as there."""
    check_fits(model, [prompt], config=config)
    _check_known(model, tokenizer, [prompt])
    with _writing(model, tokenizer, config, prompt, seed=seed, chat=chat) as stops:
        decoder = _Decoder(tokenizer, _context(model, prompt), stops)
        written = _write_batch(
            model,
            [prompt],
            pad=_filler(tokenizer, stops),
            new_tokens=_new_tokens(model, [prompt], config, OPEN_BUDGET),
            streamer=_Pieces(decoder, stream),
            grammar=_grammar(tokenizer, config, stops),
        )
        return _answer(decoder, written[0])


def check_fits(
    model: Any, prompts: Sequence[Sequence[int]], *, config: GenerationConfig, origins: Sequence[str] | None = None
) -> None:
    """Raises `DataError` naming every prompt that is empty or leaves no room for `max_new_tokens` (auto: for one)."""
    limit, added, wanted_tokens = context_length(model), _added_positions(model), _least_tokens(config)
    faults = []
    for index, prompt in enumerate(prompts):
        where = origins[index] if origins else (f"prompt {index + 1}" if len(prompts) > 1 else None)
        if not len(prompt):
            faults.append(Fault("the prompt is empty", where, "give the model something to continue"))
        elif limit is not None and added + len(prompt) + wanted_tokens > limit:
            new = f", {wanted_tokens} new and {added} virtual tokens" if added else f" and {wanted_tokens} new ones"
            message = f"{len(prompt)} prompt tokens{new} exceed the context of {limit}"
            faults.append(Fault(message, where, "shorten the prompt, or lower generation.max_new_tokens"))
    if faults:
        raise DataError("prompts cannot be answered", faults=faults)


def _check_known(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]]) -> None:
    """Raises `ModelError` for a token that the model has no row for: a tokenizer of another base."""
    embedding = input_embedding(model)
    rows = len(embedding.weight) if embedding is not None and isinstance(embedding.weight, Tensor) else None
    highest = max((max(prompt) for prompt in prompts), default=0)
    if rows is not None and highest >= rows:
        raise ModelError(
            f"the prompt holds token {highest} ({tokenizer.convert_ids_to_tokens(highest)!r}), "
            f"the model embeds {rows} tokens",
            fix="use the tokenizer that belongs to the base, or the base that the tokens were added to (--model)",
        )


def fits(model: Any, prompt: Sequence[int], config: GenerationConfig) -> bool:
    """Whether a prompt can be answered with as many tokens as the configuration asks for."""
    limit, needed = context_length(model), _added_positions(model) + len(prompt) + _least_tokens(config)
    return len(prompt) > 0 and (limit is None or needed <= limit)


def _least_tokens(config: GenerationConfig) -> int:
    """New tokens that a prompt must leave room for: a number of the recipe is a promise, `auto` is not."""
    return 1 if config.max_new_tokens == "auto" else config.max_new_tokens


def _new_tokens(model: Any, prompts: Sequence[Sequence[int]], config: GenerationConfig, budget: int) -> int:
    """New tokens for a batch of prompts that fit."""
    if config.max_new_tokens != "auto":
        return config.max_new_tokens
    limit = context_length(model)
    longest = max(len(prompt) for prompt in prompts)
    return budget if limit is None else min(budget, limit - _added_positions(model) - longest)


def _added_positions(model: Any) -> int:
    """Positions that a prompt method's virtual tokens take from the context."""
    adapter = attached(model)
    return adapter.added_positions() if adapter is not None and adapter.enabled else 0


def context_length(model: Any) -> int | None:
    """Positions that a model has, None where its configuration sets no limit."""
    config = model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


@contextmanager
def _writing(
    model: Any, tokenizer: Any, config: GenerationConfig, sample: Sequence[int], *, seed: int, chat: bool
) -> Iterator[list[int]]:
    """Evaluation mode, our generation settings and a seeded stream inside; yields the stop tokens. `sample`: a prompt to
    try on how the model's `generate` reads."""
    if not hasattr(model, "generate"):
        raise ModelError(f"{type(model).__name__} cannot write text", fix="generation needs a causal language model")
    stops = stop_token_ids(model, tokenizer, chat=chat)
    own = model.generation_config
    model.generation_config = _settings(own, config, stops, pad=_filler(tokenizer, stops))
    hook = model.register_forward_hook(require_finite_scores)
    try:
        with (
            evaluating(model, seed=seed),
            memory_errors("generating", "a smaller evaluation.batch_size"),
            _own_failures(model),
            as_trained(model, sample) if len(sample) else nullcontext(),
        ):
            yield stops
    finally:
        hook.remove()
        model.generation_config = own


def _settings(own: Any, config: GenerationConfig, stops: list[int], *, pad: int) -> Any:
    """The model's own generation config with ours over it; what ours has no key for stays the model's."""
    settings = copy.deepcopy(own)
    sampling = {"temperature": config.temperature, "top_p": config.top_p, "top_k": own.top_k or 0}
    settings.update(
        do_sample=config.do_sample,
        max_length=None,
        min_new_tokens=None,
        min_length=None,
        num_beams=1,
        num_return_sequences=1,
        use_cache=True,
        eos_token_id=stops or None,
        pad_token_id=pad,
        return_dict_in_generate=False,
        # None: unset, so that a greedy run is not warned about the settings of a sampling one
        **(sampling if config.do_sample else dict.fromkeys([*sampling, "min_p", "typical_p"])),
    )
    return settings


@contextmanager
def _own_failures(model: Any) -> Iterator[None]:
    """Some families' own `generate` fails on every input: what it raises is told as theirs, where it is theirs."""
    try:
        yield
    except (AttributeError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error) or not _fails_alone(model):
            raise
        raise _cannot_write(model, error) from error


def _fails_alone(model: Any) -> bool:
    """Whether the base without an adapter cannot go on after two tokens either."""
    ids = torch.ones((1, 2), dtype=torch.int64, device=next(model.parameters()).device)
    with disabled(model) if attached(model) is not None else nullcontext():
        try:
            model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=1)
        except Exception:
            return True
    return False


def _cannot_write(model: Any, error: BaseException) -> ModelError:
    text = " ".join(str(error).split())
    return ModelError(
        f"{type(model).__name__} cannot write text in transformers: {type(error).__name__}: {text[:200]}",
        fix="it can be trained and scored without; metrics of the loss need no text",
    )


def _write_batch(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    pad: int,
    new_tokens: int,
    streamer: BaseStreamer | None = None,
    grammar: JsonGrammar | None = None,
) -> list[list[int]]:
    """At most `new_tokens` new ids of each prompt, up to the longest answer of the batch."""
    length = max(len(prompt) for prompt in prompts)
    encoded = _is_encoder_decoder(model)
    input_ids = torch.full((len(prompts), length), pad, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        # a decoder goes on after the prompt; an encoder counts its positions from the left
        place = slice(0, len(prompt)) if encoded else slice(length - len(prompt), length)
        input_ids[row, place] = torch.as_tensor(list(prompt), dtype=torch.int64)
        attention_mask[row, place] = 1
    device = next(model.parameters()).device
    model.generation_config.max_new_tokens = new_tokens  # our own copy, see `_writing`
    output: Tensor = model.generate(
        input_ids=input_ids.to(device),
        attention_mask=attention_mask.to(device),
        streamer=streamer,
        **({} if grammar is None else {"logits_processor": [grammar.processor()]}),
    )
    # an encoder-decoder gives back its start token and the answer, without the prompt
    new: list[list[int]] = output[:, 1 if encoded else length :].tolist()
    return new


def _grammar(tokenizer: Any, config: GenerationConfig, stops: Sequence[int]) -> JsonGrammar | None:
    """What answers are kept to; None where they are free."""
    if config.json_schema is None:
        return None
    # imported where it is asked for: the package is an extra
    from peftcli.evaluation.constrained import JsonGrammar

    return JsonGrammar(config.json_schema, tokenizer, stops)


def _is_encoder_decoder(model: Any) -> bool:
    return bool(getattr(model.config, "is_encoder_decoder", False))


def _context(model: Any, prompt: Sequence[int]) -> Sequence[int]:
    """What an answer stands after: the prompt, or nothing where a decoder begins a text of its own."""
    return () if _is_encoder_decoder(model) else prompt


def require_finite_scores(_model: Any, _inputs: Any, output: Any) -> None:
    """A hook after each forward pass that writes: a best token, by a finite score, must be there for each row."""
    scores: Tensor = output.logits[:, -1]  # (batch, vocab)
    # NaN and infinity are each the largest of their row; a row of minus infinities has no finite one
    if not bool(torch.isfinite(scores.amax(-1)).all()):
        raise NumericalError(
            "the model's scores for the next token are not finite: no text can be written from them",
            fix="the adapter's tensors or its lora_alpha are out of range (or the base is broken): train it again",
        )


class _Decoder:
    """Text of an answer as it stands after its prompt: tokenizers that mark the start of a text would drop a space."""

    def __init__(self, tokenizer: Any, prompt: Sequence[int], stops: Sequence[int]) -> None:
        self.tokenizer = tokenizer
        self.stops = frozenset(stops)
        self.context = list(prompt[-_CONTEXT:])
        self.before = self._decode(self.context)

    def text(self, ids: Sequence[int]) -> str:
        """The text of new ids, without special tokens and without a stop token at the end."""
        kept = list(ids[:-1] if ids and ids[-1] in self.stops else ids)
        whole = self._decode([*self.context, *kept])
        return whole[len(self.before) :] if whole.startswith(self.before) else self._decode(kept)

    def _decode(self, ids: Sequence[int]) -> str:
        return text_of(self.tokenizer, ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _answer(decoder: _Decoder, ids: Sequence[int]) -> GeneratedAnswer:
    end = next((index + 1 for index, token in enumerate(ids) if token in decoder.stops), None)
    kept = list(ids[:end])
    return GeneratedAnswer(decoder.text(kept), kept, "length" if end is None else "stop")


def _filler(tokenizer: Any, stops: Sequence[int]) -> int:
    """A token to pad with; masked, so any will do."""
    pad = tokenizer.pad_token_id
    return int(pad) if pad is not None else (stops[0] if stops else 0)


class _Pieces(BaseStreamer):  # type: ignore[misc]
    """Decodes an answer as its tokens come, and gives text away once no later token can change it."""

    def __init__(self, decoder: _Decoder, stream: Stream) -> None:
        self.decoder = decoder
        self.stream = stream
        self.ids: list[int] | None = None  # None: the prompt comes first
        self.told = 0

    def put(self, value: Tensor) -> None:
        if self.ids is None:
            self.ids = []
            return
        self.ids += value.flatten().tolist()
        text = self.decoder.text(self.ids)
        if not text.endswith(_UNFINISHED):
            self._tell(text)

    def end(self) -> None:
        self._tell(self.decoder.text(self.ids or []))

    def _tell(self, text: str) -> None:
        if len(text) > self.told:
            self.stream(text[self.told :])
            self.told = len(text)
