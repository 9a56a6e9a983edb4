"""`{"instruction": ..., "input": ..., "output": ...}` (alpaca): a chat under a template, else plain headings."""

from __future__ import annotations

from peftcli.data.columns import Columns, filled_text, optional_text
from peftcli.data.faults import RowFault
from peftcli.data.format import Format
from peftcli.data.rows import ChatRow, Message, Piece, PiecesRow


def recognise(row: Columns) -> str | None:
    """By `instruction` and `output`, or by the columns of SQuAD."""
    if _as_in_squad(row):
        return "columns `context`, `question` and `answers`, as in SQuAD"
    return "columns `instruction` and `output`" if "instruction" in row and "output" in row else None


def _as_in_squad(row: Columns) -> bool:
    answers = row.get("answers")
    named = "context" in row and "question" in row and "instruction" not in row
    return named and isinstance(answers, dict) and set(answers) == {"text", "answer_start"}


def _of_squad(row: Columns) -> Columns:
    """The question as instruction, its context as input, the first of the answers (all are the same in training sets)."""
    texts = row["answers"]["text"]
    if not isinstance(texts, list) or not texts:
        raise RowFault(
            "'answers' holds no text: the question has no answer in its context",
            "remove the row, or write the answer that the model is to give into a column of its own",
        )
    return {"instruction": row["question"], "input": row["context"], "output": texts[0]}


def parse(row: Columns) -> ChatRow:
    """The turns of `history`, then instruction and input as one question, and the output as its answer."""
    row = _of_squad(row) if _as_in_squad(row) else row
    instruction, output = filled_text(row, "instruction"), filled_text(row, "output")
    given, system = optional_text(row, "input"), optional_text(row, "system")
    history = _history(row)
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    for asked, answered in history:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    asked = f"{instruction}\n\n{given}" if given else instruction
    messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": output}]
    return ChatRow(messages, [None] * len(messages), plain=_plain(system, history, instruction, given, output))


def _history(row: Columns) -> list[tuple[str, str]]:
    turns = row.get("history") or []
    if not isinstance(turns, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in turns):
        raise RowFault("'history' must be a list of [question, answer] pairs")
    if not all(isinstance(text, str) and text.strip() for turn in turns for text in turn):
        raise RowFault("'history' holds an empty turn or one that is not text")
    return [(asked, answered) for asked, answered in turns]


def _plain(system: str, history: list[tuple[str, str]], instruction: str, given: str, output: str) -> PiecesRow:
    pieces: list[Piece] = []
    head = f"{system}\n\n" if system else ""
    for asked, answered in history:
        pieces += [Piece(f"{head}{plain_prompt(asked)}", None), Piece(answered, 1.0)]
        head = "\n\n"
    return PiecesRow((*pieces, Piece(f"{head}{plain_prompt(instruction, given)}", None), Piece(output, 1.0)))


def plain_prompt(instruction: str, given: str = "") -> str:
    """The prompt under which a base without a chat template is trained on instructions."""
    middle = f"### Input:\n{given}\n\n" if given else ""
    return f"### Instruction:\n{instruction}\n\n{middle}### Response:\n"


FORMAT = Format(
    "instruction",
    ("instruction", "output"),
    ("input", "system", "history"),
    recognise,
    parse,
    rank=30,
    example='{"instruction": "Name a colour.", "input": "", "output": "Blue."}',
    usual={
        "instruction": ("question", "query", "prompt", "task"),
        "input": ("context", "passage", "document"),
        "system": ("system_prompt", "system_message"),
        "output": ("response", "answer", "completion", "answers.text.0"),
    },
    foreign_names=("alpaca",),
)
