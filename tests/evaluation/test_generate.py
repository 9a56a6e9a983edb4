from __future__ import annotations

import copy
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from peftcli.errors import DataError, ModelError, RecipeError
from peftcli.evaluation import prompts as prompts_module
from peftcli.evaluation.chat import Conversation, take_turn
from peftcli.evaluation.config import GenerationConfig
from peftcli.evaluation.generate import _Decoder, generate, generate_stream
from peftcli.evaluation.prompts import encode_prompt, encode_row, encode_text, stop_token_ids

PROMPTS = [[5, 6, 7], [9], [20, 21, 22, 23, 24, 25, 26], [40, 41], [9, 9, 9]]


def settings(**changes: Any) -> GenerationConfig:
    return GenerationConfig(**{"max_new_tokens": 12, **changes})


def step_by_step(model: Any, prompt: list[int], count: int, stops: list[int]) -> list[int]:
    """The likeliest continuation without cache, batch or padding."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] in stops:
            break
    return ids[len(prompt) :]


def test_a_padded_batch_writes_what_each_prompt_alone_gives(model: Any, tokenizer: Any) -> None:
    answers = generate(model, tokenizer, PROMPTS, config=settings(), batch_size=3)
    stops = stop_token_ids(model, tokenizer)
    assert [answer.token_ids for answer in answers] == [step_by_step(model, prompt, 12, stops) for prompt in PROMPTS]
    assert {answer.finish for answer in answers} <= {"stop", "length"}


def test_an_answer_ends_at_each_stop_token(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    long = generate(model, tokenizer, PROMPTS[:1], config=settings())[0]
    stop = long.token_ids[4]
    monkeypatch.setattr(model.generation_config, "eos_token_id", [tokenizer.eos_token_id, stop])
    short, other = generate(model, tokenizer, [PROMPTS[0], PROMPTS[2]], config=settings())
    assert short.token_ids == long.token_ids[: long.token_ids.index(stop) + 1]
    assert short.finish == "stop"
    assert short.text == tokenizer.decode(short.token_ids[:-1], skip_special_tokens=True)
    assert stop not in other.token_ids[:-1]


def test_stop_tokens_come_from_tokenizer_config_and_template(model: Any, tokenizer: Any, plain_tokenizer: Any) -> None:
    end, eos = tokenizer.convert_tokens_to_ids(["<end>", "<eos>"])
    assert stop_token_ids(model, tokenizer) == sorted([eos, end])
    assert stop_token_ids(model, plain_tokenizer) == [eos]


def test_the_templates_stop_ends_answers_of_conversations_only(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = generate(model, tokenizer, PROMPTS[:1], config=settings())[0]
    monkeypatch.setattr(prompts_module, "_template_stop", lambda _tokenizer: whole.token_ids[4])
    cut = generate(model, tokenizer, PROMPTS[:1], config=settings())[0]
    assert (cut.finish, len(cut.token_ids)) == ("stop", whole.token_ids.index(whole.token_ids[4]) + 1)
    assert generate(model, tokenizer, PROMPTS[:1], config=settings(), chat=False)[0] == whole
    pieces: list[str] = []
    found = generate_stream(model, tokenizer, PROMPTS[0], config=settings(), stream=pieces.append, chat=False)
    assert (found, "".join(pieces)) == (whole, whole.text)


def test_sampling_is_seeded_and_leaves_shared_generators_alone(model: Any, tokenizer: Any) -> None:
    config = settings(do_sample=True, temperature=2.0)
    before = torch.get_rng_state()
    first = generate(model, tokenizer, PROMPTS, config=config, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    assert generate(model, tokenizer, PROMPTS, config=config, seed=1) == first
    assert generate(model, tokenizer, PROMPTS, config=config, seed=2) != first
    assert generate(model, tokenizer, PROMPTS, config=settings()) != first


@pytest.mark.parametrize("changes", [{"temperature": 1e-4}, {"top_p": 1e-6}])
def test_sampling_keys_reach_the_model(model: Any, tokenizer: Any, changes: dict[str, float]) -> None:
    greedy = generate(model, tokenizer, PROMPTS, config=settings())
    careful = generate(model, tokenizer, PROMPTS, config=settings(do_sample=True, **changes), seed=3)
    assert [answer.token_ids for answer in careful] == [answer.token_ids for answer in greedy]


def test_the_models_own_settings_are_put_aside_and_back(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    own = copy.deepcopy(model.generation_config)
    own.update(do_sample=True, temperature=0.6, top_k=20, max_length=40, num_beams=2)
    wanted = generate(model, tokenizer, PROMPTS, config=settings())
    monkeypatch.setattr(model, "generation_config", own)
    kept = copy.deepcopy(own)
    model.train()
    assert generate(model, tokenizer, PROMPTS, config=settings()) == wanted
    assert model.training
    model.eval()
    assert model.generation_config is own
    assert own.to_dict() == kept.to_dict()
    assert capfd.readouterr().err == ""  # no warnings about settings that the user never made


def test_max_new_tokens_cuts(model: Any, tokenizer: Any) -> None:
    answer = generate(model, tokenizer, PROMPTS[:1], config=settings(max_new_tokens=3))[0]
    assert (len(answer.token_ids), answer.finish) == (3, "length")


def test_prompts_that_do_not_fit_are_all_named(model: Any, tokenizer: Any) -> None:
    prompts = [[5] * 120, [5], [], [5] * 117]
    with pytest.raises(DataError) as caught:
        generate(model, tokenizer, prompts, config=settings(), origins=["a:1", "a:2", "a:3", "a:4"])
    faults = {fault.where: fault.message for fault in caught.value.faults}
    assert faults.keys() == {"a:1", "a:3", "a:4"}
    assert faults["a:1"] == "120 prompt tokens and 12 new ones exceed the context of 128"
    assert faults["a:3"] == "the prompt is empty"
    generate(model, tokenizer, [[5] * 116], config=settings())


def test_nothing_to_write_is_nothing(model: Any, tokenizer: Any) -> None:
    assert generate(model, tokenizer, [], config=settings()) == []


def test_a_stream_adds_up_to_the_answer(model: Any, tokenizer: Any) -> None:
    pieces: list[str] = []
    answer = generate_stream(model, tokenizer, PROMPTS[0], config=settings(), stream=pieces.append)
    assert answer == generate(model, tokenizer, PROMPTS[:1], config=settings())[0]
    assert "".join(pieces) == answer.text
    assert len(pieces) > 1


def test_a_stream_never_shows_half_a_character(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "aé漢🙂b"
    script = tokenizer(text)["input_ids"]
    monkeypatch.setattr(model, "generate", scripted([*script, tokenizer.eos_token_id]))
    pieces: list[str] = []
    answer = generate_stream(model, tokenizer, [1], config=settings(), stream=pieces.append)
    assert pieces == list(text)
    assert (answer.text, answer.finish) == (text, "stop")


def scripted(new: list[int]) -> Any:
    """Stands for `model.generate`: always writes the same tokens."""

    def write(*, input_ids: torch.Tensor, attention_mask: torch.Tensor, streamer: Any = None) -> torch.Tensor:
        if streamer:
            streamer.put(input_ids)
            for token in new:
                streamer.put(torch.tensor([token]))
            streamer.end()
        return torch.cat([input_ids, torch.tensor([new]).expand(len(input_ids), -1)], dim=1)

    return write


def test_prompts_go_through_the_chat_template(tokenizer: Any, plain_tokenizer: Any) -> None:
    assert tokenizer.decode(encode_prompt(tokenizer, "hi")) == "<user>hi<end><assistant>"
    with_system = encode_prompt(tokenizer, "hi", system_prompt="be kind")
    assert tokenizer.decode(with_system) == "<system>be kind<end><user>hi<end><assistant>"
    own = encode_prompt(
        tokenizer, [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], system_prompt="x"
    )
    assert tokenizer.decode(own) == "<system>s<end><user>u<end><assistant>"
    assert encode_prompt(tokenizer, "hi", chat=False) == encode_prompt(plain_tokenizer, "hi")
    assert plain_tokenizer.decode(encode_prompt(plain_tokenizer, "hi")) == "hi"
    with pytest.raises(RecipeError, match=r"generation\.system_prompt has no effect"):
        encode_prompt(plain_tokenizer, "hi", system_prompt="x")
    with pytest.raises(ModelError, match="no chat template"):
        encode_prompt(plain_tokenizer, [{"role": "user", "content": "u"}])


def test_a_plain_prompt_has_no_end_token() -> None:
    class Ending:
        def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
            return {"input_ids": [1, 7, 8, 2] if add_special_tokens else [7, 8]}

    assert encode_text(Ending(), "x") == [1, 7, 8]


def test_a_template_that_refuses_is_a_data_error(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(DataError, match="roles must alternate"):
        encode_prompt(tokenizer, "hi")


def test_rows_of_an_input_file(tokenizer: Any, plain_tokenizer: Any) -> None:
    def text(row: dict[str, Any], **options: Any) -> str:
        return tokenizer.decode(encode_row(tokenizer, row, where="f:3", **options))

    user, assistant = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
    assert text({"prompt": "x", "other": 1}) == "<user>x<end><assistant>"
    assert text({"prompt": "x"}, chat=False) == "x"
    answered = "<user>q<end><assistant>a<end><user>q<end><assistant>"
    assert text({"messages": [user, assistant, user, assistant]}) == answered
    assert text({"prompt": [user]}, system_prompt="s") == "<system>s<end><user>q<end><assistant>"
    for bad in ({}, {"prompt": None}, {"messages": []}, {"messages": ["x"]}, {"messages": [assistant]}):
        with pytest.raises(DataError) as caught:
            text(bad)
        assert caught.value.faults[0].where == "f:3"
    with pytest.raises(ModelError, match="no chat template"):
        encode_row(plain_tokenizer, {"messages": [user]}, where="f:3")


def test_an_answer_keeps_its_first_space() -> None:
    """Tokenizers that mark word starts drop a leading space when an answer is decoded by itself."""

    class Marking:
        def decode(self, ids: list[int], **_: Any) -> str:
            return (
                "".join({1: "\u2581once", 2: "\u2581upon", 3: "\u2581a", 9: ""}[i] for i in ids)
                .replace("\u2581", " ")
                .lstrip(" ")
            )

    assert _Decoder(Marking(), [1], [9]).text([2, 3, 9]) == " upon a"
    assert _Decoder(Marking(), [], [9]).text([2, 3]) == "upon a"


def test_a_conversation_goes_on(model: Any, tokenizer: Any) -> None:
    first = take_turn(model, tokenizer, Conversation(), "hello", config=settings())
    assert [message["role"] for message in first.conversation.messages] == ["user", "assistant"]
    assert first.conversation.messages[1]["content"] == first.reply.text
    assert first.base is None
    second = take_turn(model, tokenizer, first.conversation, "and?", config=settings())
    wanted = prompts_module.encode_messages(
        tokenizer, [*first.conversation.messages, {"role": "user", "content": "and?"}]
    )
    assert second.reply == generate(model, tokenizer, [wanted], config=settings())[0]
    assert first.conversation.messages[-1]["role"] == "assistant"  # the earlier conversation is untouched


def test_the_base_answers_beside_the_tuned_model(model: Any, tokenizer: Any) -> None:
    state: list[str] = []

    @contextmanager
    def disabled() -> Any:
        state.append("off")
        yield
        state.append("on")

    told: list[str] = []
    turn = take_turn(
        model,
        tokenizer,
        Conversation(),
        "hello",
        config=settings(),
        disabled=disabled,
        base_stream=lambda piece: told.append(piece) or state.append("piece"),
    )
    assert turn.base is not None
    assert "".join(told) == turn.base.text
    assert (state[0], state[-1]) == ("off", "on")


def test_a_conversation_that_is_too_long_says_so(model: Any, tokenizer: Any) -> None:
    with pytest.raises(DataError, match="exceed the context of 128") as caught:
        take_turn(model, tokenizer, Conversation(), "x" * 200, config=settings())
    assert "start a new conversation" in caught.value.fix
