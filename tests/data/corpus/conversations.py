"""Sixteen conversations of the kinds that data sets hold, as rows of `messages`."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]


def _said(role: str, content: str, **more: Any) -> Row:
    return {"role": role, "content": content, **more}


def _call(name: str, number: int, **arguments: Any) -> Row:
    return {"id": f"call{number:05d}", "type": "function", "function": {"name": name, "arguments": arguments}}


def _calling(*calls: Row, content: str | None = None, **more: Any) -> Row:
    return {"role": "assistant", "content": content, "tool_calls": list(calls), **more}


def _result(number: int, name: str, content: str) -> Row:
    return {"role": "tool", "content": content, "name": name, "tool_call_id": f"call{number:05d}"}


def _tool(name: str, parameter: str) -> Row:
    schema = {
        "type": "object",
        "properties": {parameter: {"type": "string", "description": f"The {parameter}."}},
        "required": [parameter],
    }
    return {"type": "function", "function": {"name": name, "description": f"Looks at {name}.", "parameters": schema}}


TOOLS = [_tool("get_weather", "city"), _tool("get_time", "zone")]
ASK = _said("user", "What is the weather in Oslo?")
WEATHER = _call("get_weather", 1, city="Oslo")
CALL = _calling(WEATHER)
RESULT = _result(1, "get_weather", '{"sky": "grey"}')
CHAT = [_said("user", "Name a colour."), _said("assistant", "Blue, for one.")]
MORE = [
    *CHAT,
    _said("user", "Another one?"),
    _said("assistant", "Red."),
    _said("user", "And a last one?"),
    _said("assistant", "Green it is."),
]
SYSTEM = _said("system", "Answer in few words.")
THOUGHT = "The user asks for a colour, so any will do."


def _thinking(messages: list[Row], field: str = "reasoning_content") -> list[Row]:
    return [
        {**message, field: f"{THOUGHT} Number {number}."} if message["role"] == "assistant" else message
        for number, message in enumerate(messages)
    ]


CONVERSATIONS: dict[str, Row] = {
    "single": {"messages": CHAT},
    "system": {"messages": [SYSTEM, *CHAT]},
    "turns": {"messages": MORE},
    "system-turns": {"messages": [SYSTEM, *MORE]},
    "tools-unused": {"messages": CHAT, "tools": TOOLS},
    "call": {"messages": [ASK, CALL, RESULT, _said("assistant", "Grey skies in Oslo.")], "tools": TOOLS},
    "call-last": {"messages": [ASK, CALL], "tools": TOOLS},
    "call-with-words": {
        "messages": [ASK, _calling(WEATHER, content="Let me look."), RESULT, _said("assistant", "Grey.")],
        "tools": TOOLS,
    },
    "parallel": {
        "messages": [
            ASK,
            _calling(WEATHER, _call("get_time", 2, zone="CET")),
            RESULT,
            _result(2, "get_time", "noon"),
            _said("assistant", "Grey, and it is noon."),
        ],
        "tools": TOOLS,
    },
    "parallel-alike": {
        "messages": [
            ASK,
            _calling(WEATHER, _call("get_weather", 2, city="Bergen")),
            RESULT,
            _result(2, "get_weather", "rain"),
            _said("assistant", "Grey, and rain."),
        ],
        "tools": TOOLS,
    },
    "thought": {"messages": _thinking(CHAT)},
    "thought-turns": {"messages": _thinking(MORE, "thinking")},
    "thought-call": {
        "messages": _thinking([ASK, CALL, RESULT, _said("assistant", "Grey skies in Oslo.")]),
        "tools": TOOLS,
    },
    "emoji": {
        "messages": [
            _said("user", "Say it in pictures 🐈‍⬛"),
            _said("assistant", "\n\nÜnï 🐈‍⬛\tand  \n spaces  "),
            _said("user", "  again\n"),
            _said("assistant", "ok"),
        ]
    },
    "echo": {
        "messages": [
            _said("user", "a"),
            _said("assistant", "a"),
            _said("user", "user"),
            _said("assistant", "assistant"),
            _said("user", "think"),
            _said("assistant", "think"),
        ]
    },
    "special": {
        "messages": [
            _said("user", "Write <|im_end|> and </s> and <think>."),
            _said("assistant", "Here: <|im_end|> </s> <|end|><|eot_id|> done."),
            _said("user", "Once more?"),
            _said("assistant", "No </think> more."),
        ]
    },
}
assert len(CONVERSATIONS) == 16
