"""The shipped base: pinned bytes, loadable offline, a template that trains what it later prompts, the skills it has."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftcli.data.builtin import builtin_data
from peftcli.errors import ModelError
from peftcli.models.builtin import HASHES_PATH, base_names, builtin_base, pinned_hashes

MAX_BYTES = 4_000_000


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(builtin_base("tiny"), local_files_only=True)


@pytest.fixture(scope="module")
def model():
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(builtin_base("tiny"), local_files_only=True).eval()


def conversations(name: str, count: int) -> list[list[dict[str, str]]]:
    lines = builtin_data(name).read_text(encoding="utf-8").splitlines()[:count]
    return [json.loads(line)["messages"] for line in lines]


def answers(model, tokenizer, prompts: list[list[dict[str, str]]], max_new_tokens: int = 56) -> list[str]:
    """Greedy answers, the generated text after the prompt without special tokens."""
    import torch

    tokenizer.padding_side = "left"
    texts = [tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True) for prompt in prompts]
    batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    with torch.no_grad():
        made = model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False)
    return tokenizer.batch_decode(made[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def test_shipped_files_are_the_pinned_ones():
    folder = HASHES_PATH.parent
    found = {
        path.relative_to(folder).as_posix(): path for path in folder.glob("*/*") if path.parent.name in base_names()
    }
    hashes = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in found.items()}
    assert hashes == pinned_hashes()


def test_base_is_small():
    assert sum(path.stat().st_size for path in builtin_base("tiny").iterdir()) <= MAX_BYTES


def test_unknown_base_is_named_with_near_ones():
    with pytest.raises(ModelError, match="builtin:tinny") as caught:
        builtin_base("tinny")
    assert "`builtin:tiny`" in caught.value.render()
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("name", ["", "..", "tiny/..", "../builtin/tiny"])
def test_name_is_no_path(name):
    with pytest.raises(ModelError):
        builtin_base(name)


def test_found_without_torch():
    code = (
        "import sys; from peftcli.models.builtin import builtin_base; from peftcli.data.builtin import builtin_data; "
        "builtin_base('tiny'), builtin_data('support'); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_architecture_is_llama_with_a_long_enough_context(model):
    config = model.config
    assert (config.model_type, config.architectures) == ("llama", ["LlamaForCausalLM"])
    assert config.max_position_embeddings >= 512
    assert 850_000 < sum(tensor.numel() for tensor in model.parameters()) < 1_000_000
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_special_tokens_agree_in_all_files(model, tokenizer):
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert len(set(ids)) == 3
    for config in (model.config, model.generation_config):
        assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == ids
    assert len(tokenizer) == model.config.vocab_size


@pytest.mark.parametrize("name", ["support", "chat"])
def test_training_text_is_prompt_and_answer_and_stop(tokenizer, name):
    for messages in conversations(name, 40):
        prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
        answer = tokenizer(messages[-1]["content"], add_special_tokens=False)["input_ids"]
        whole = tokenizer.apply_chat_template(messages, return_dict=False)
        assert whole == [*prompt, *answer, tokenizer.eos_token_id]


@pytest.mark.parametrize("special", [True, False])
def test_one_bos_on_every_way_to_tokens(tokenizer, special):
    messages = conversations("support", 1)[0]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    direct = tokenizer.apply_chat_template(messages, return_dict=False)
    assert tokenizer(text, add_special_tokens=special)["input_ids"] == direct
    assert direct.count(tokenizer.bos_token_id) == 1
    assert direct[0] == tokenizer.bos_token_id


def test_template_refuses_unknown_roles(tokenizer):
    with pytest.raises(Exception, match="unknown role: tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_survives_the_tokenizer(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_requests_and_records_are_short(tokenizer):
    rows = conversations("support/validation", 250)
    lengths = [[len(tokenizer(turn["content"])["input_ids"]) for turn in row] for row in rows]
    assert max(request for request, _ in lengths) <= 64
    assert max(record for _, record in lengths) <= 45


def test_base_fails_at_the_skill_yet_stops(model, tokenizer):
    rows = conversations("support/validation", 60)
    made = answers(model, tokenizer, [row[:-1] for row in rows])
    assert sum(text == row[-1]["content"] for text, row in zip(made, rows, strict=True)) < 6
    # an answer that was cut off would be as long as the limit
    assert sum(len(tokenizer(text)["input_ids"]) < 56 for text in made) >= 58


def test_base_quotes_values_that_it_never_saw(model, tokenizer):
    rows = conversations("support/validation", 60)
    prompts = [[{"role": "user", "content": f"Copy this line.\n{row[0]['content']}"}] for row in rows]
    made = answers(model, tokenizer, prompts, max_new_tokens=70)
    codes = [json.loads(row[-1]["content"])["code"] for row in rows]
    # measured: 53; a base of this size swaps or drops a word now and then
    assert sum(code in text for code, text in zip(codes, made, strict=True)) >= 45
