"""Every template of a folder on sixteen conversations, against transformers and the oracle: `python corpus.py FOLDER`.

A difference is stated where the row is refused with a reason or a check of the data doctor tells of it; else it is silent.
"""

from __future__ import annotations

import datetime
import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from peftcli.data.encode.base import EncodeSettings
from peftcli.data.encode.encoder import RowEncoder
from peftcli.data.faults import RowFault
from peftcli.data.formats import messages as messages_format
from peftcli.data.tokens import TokenizerFacts
from peftcli.errors import ModelError
from tests.data.conftest import CORPUS
from tests.data.corpus.conversations import CONVERSATIONS
from tests.data.corpus.oracle import Oracle, normalised

_TOKEN = re.compile(
    r"<\|[\w:. -]+\|?>|<[\w]+\|>|<｜[^｜<>]+｜>|</?s>|</?(?:think|tool_call|tool_response|answer)>|\[/?[A-Z_]{2,}\]"
    r"|</?(?:assistant|user|system|mm:think)>|<sep>|<(?:end|start|begin)_of_\w+>|<SPECIAL_\d+>|<(?:start|end)_of_turn>|<end_of_utterance>|<eos>|<bos>|\]~!?b?\[|\]~b\]|\[e~\[|</?seed:\w+>|<sop>|\[gMASK\]|\[BOS\]|\[EOS\]"
)
_PLAIN = re.compile(r"</?(?:think|tool_call|tool_response|answer)>")


@dataclass
class Outcome:
    """`kind`: exact; cut (at an answer's edge, where a token of the tokenizer's lies across it); told, by a check of the
    data doctor; refused, by us or by both; silent."""

    template: str
    conversation: str
    kind: str
    why: str = ""
    checks: list[str] = field(default_factory=list)


def tokenizer_for(source: str) -> Any:
    """A small byte-level tokenizer with the special tokens that the template writes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        CORPUS * 4, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    written = sorted({*_TOKEN.findall(source)})
    core.add_special_tokens([text for text in ("<s>", "</s>", "<pad>") if text not in written])
    core.add_special_tokens([text for text in written if not _PLAIN.fullmatch(text)])
    core.add_tokens([AddedToken(text, special=False, normalized=False) for text in written if _PLAIN.fullmatch(text)])
    end = next((text for text in ("<|im_end|>", "<end_of_turn>", "<turn|>") if text in written), "</s>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token=end, pad_token="<pad>")
    tokenizer.chat_template = source
    return tokenizer


class _Day(datetime.datetime):
    @classmethod
    def now(cls, tz: Any = None) -> _Day:
        return cls(2024, 7, 26)


def fixed_day() -> AbstractContextManager[Any]:
    """Inside it transformers gives templates that ask for today the day that ours gets."""
    return mock.patch("transformers.utils.chat_template_utils.datetime", _Day)


def run(folder: Path, only: str = "") -> Iterator[Outcome]:
    """What becomes of each template and conversation."""
    with fixed_day():
        for path in sorted(folder.glob("*.jinja")):
            if only in path.name:
                yield from _template(path)


def _template(path: Path) -> Iterator[Outcome]:
    tokenizer = tokenizer_for(path.read_text(encoding="utf-8"))
    try:
        encoder = RowEncoder(TokenizerFacts.of(tokenizer), EncodeSettings(append_eos=True, train_on="completions"))
    except ModelError as error:
        for name in CONVERSATIONS:
            yield Outcome(path.stem, name, "refused", f"the template: {error.message}")
        return
    parts = takes_parts(tokenizer)
    for name, row in CONVERSATIONS.items():
        yield _conversation(path.stem, name, row, Oracle(tokenizer), encoder, parts=parts)


def takes_parts(tokenizer: Any) -> bool:
    """Whether the template needs content as a list of parts: it then writes nothing of a plain text."""
    from jinja2 import TemplateError

    shown = []
    for content in ("PROBE", [{"type": "text", "text": "PROBE"}]):
        try:
            shown.append(
                "PROBE" in tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
            )
        except (TemplateError, TypeError):
            shown.append(False)
    return shown == [False, True]


def _conversation(
    template: str, name: str, row: dict[str, Any], oracle: Oracle, encoder: RowEncoder, *, parts: bool
) -> Outcome:
    messages, tools = normalised(row["messages"], parts=parts), row.get("tools")
    try:
        wanted = oracle.ids(messages, tools)
        truth = oracle.truth(messages, tools)
        broken = ""
    except Exception as error:  # whatever the template does with this conversation
        broken = f"{type(error).__name__}: {error}"[:80]
    try:
        encoded = encoder.encode([messages_format.parse(row)], lambda _: "row 1")
        refusal = encoded.refused.get(0, ("", None))[0]
    except (RowFault, ModelError) as error:
        refusal = error.message
    if broken:
        return Outcome(template, name, "both-refuse" if refusal else "silent", refusal or broken)
    if refusal:
        return Outcome(template, name, "refused", refusal)
    checks = sorted({hit.check for hit in encoded.hits})
    ids, weights = encoded.tokens().tolist(), encoded.weights()
    cut = ids != wanted and _cut_at_edges(oracle.tokenizer, ids, wanted, weights)
    if ids != wanted and not cut:
        return Outcome(template, name, "silent", f"ids differ: {_differ(oracle.tokenizer, ids, wanted)}", checks)
    if why := _wrong(oracle, ids, weights, truth):
        return Outcome(template, name, "silent", why, checks)
    return Outcome(template, name, "told" if checks else "cut" if cut else "exact", "; ".join(checks), checks)


def _cut_at_edges(tokenizer: Any, ids: list[int], wanted: list[int], weights: np.ndarray) -> bool:
    """Whether the ids are the tokenizer's but where a token of its lies across an edge of an answer."""
    if tokenizer.decode(ids) != tokenizer.decode(wanted):
        return False
    ours, theirs = _ends(tokenizer, ids), _ends(tokenizer, wanted)
    edges = {ours[at - 1] for at in np.flatnonzero(np.diff(np.r_[0, (weights > 0).astype(int)])) if at}
    edges |= {ours[at - 1] for at in np.flatnonzero(np.diff(np.r_[(weights > 0).astype(int), 0]) < 0) + 1}
    return bool(edges - set(theirs))


def _ends(tokenizer: Any, ids: list[int]) -> list[int]:
    """Where each token ends, in bytes."""
    spelt = tokenizer.convert_ids_to_tokens(ids)
    special = {token.content for token in tokenizer.added_tokens_decoder.values()}
    lengths = [len(text.encode()) if text in special else len(text) for text in spelt]
    return np.cumsum(lengths).tolist()


def _differ(tokenizer: Any, ids: list[int], wanted: list[int]) -> str:
    at = next(
        (n for n, (one, other) in enumerate(zip(ids, wanted, strict=False)) if one != other), min(len(ids), len(wanted))
    )
    return f"{tokenizer.decode(ids[at - 3 : at + 9])!r} for {tokenizer.decode(wanted[at - 3 : at + 9])!r}"


def _wrong(oracle: Oracle, ids: list[int], weights: np.ndarray, truth: Any) -> str:
    """How the trained runs differ from the truth; empty where they do not."""
    trained = np.r_[0, (weights > 0).astype(int), 0]
    edges = np.flatnonzero(np.diff(trained))
    decode = oracle.tokenizer.decode
    runs = [
        (len(decode(ids[:start])), len(decode(ids[:end]))) for start, end in zip(edges[::2], edges[1::2], strict=True)
    ]
    if len(runs) != len(truth.spans):
        return f"{len(runs)} trained runs for {len(truth.spans)} answers"
    for (start, end), span in zip(runs, truth.spans, strict=True):
        if span is None:
            continue
        for what, at, allowed in (("starts", start, span[0]), ("ends", end, span[1])):
            if at not in allowed:
                near = min(allowed, key=lambda each: abs(each - at))
                return f"{what} {truth.text[min(at, near) : max(at, near)]!r} {'early' if at < near else 'late'}"
    return ""


def table(outcomes: list[Outcome]) -> str:
    """Counts by kind, and every reason with how often and where first."""
    kinds = Counter(each.kind for each in outcomes)
    lines = [f"{len({each.template for each in outcomes})} templates, {len(outcomes)} conversations: {dict(kinds)}"]
    reasons: dict[tuple[str, str], list[Outcome]] = {}
    for each in outcomes:
        if each.kind != "exact":
            reasons.setdefault((each.kind, re.sub(r"\d+", "N", each.why)[:110]), []).append(each)
    for (kind, why), found in sorted(reasons.items(), key=lambda pair: (pair[0][0], -len(pair[1]))):
        templates = len({each.template for each in found})
        lines.append(
            f"{kind:12} {len(found):5} in {templates:3}  {why}   [{found[0].template} / {found[0].conversation}]"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(list(run(Path(sys.argv[1]), *sys.argv[2:]))))
