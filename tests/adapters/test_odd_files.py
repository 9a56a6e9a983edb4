"""Files that the reference loads although something about them is odd: the same logits, and a warning that says so.

The right answers come from weights that are changed by hand, and from the reference itself where it is installed.
"""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from peftcli import adapters
from peftcli.adapters.documents import CONFIG_NAME, TENSORS_NAME, read_config
from peftcli.adapters.surgery import adapter_of
from peftcli.errors import AdapterError, AdapterWarning
from peftcli.jobs.convert import convert_adapter

PREFIX = "base_model.model."
IDS = torch.arange(1, 25).view(2, 12)
SIZES: Mapping[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
Tensors = dict[str, Tensor]


def llama(**changes: Any) -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, **changes})).eval()


def neox() -> Any:
    torch.manual_seed(0)
    sizes = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}
    return GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, max_position_embeddings=64)).eval()


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS).logits
    return found


LORA: Mapping[str, Any] = {"type": "lora", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}


def written(folder: Path, model: nn.Module, section: Mapping[str, Any]) -> Tensor:
    """An adapter folder with tensors that are no start; returns the logits of the model that wrote it."""
    adapters.attach(model, dict(section) if "type" in section else {**LORA, **section})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter_of(model).trainable_parameters().values():
            parameter.add_(torch.empty(parameter.shape).normal_(0.0, 0.05, generator=generator))
    adapters.save(model, folder)
    (folder / "peftcli.json").unlink()  # as the reference's folders are
    return logits(model)


def edit(
    folder: Path, fields: Mapping[str, Any] | None = None, tensors: Callable[[Tensors], Tensors] | None = None
) -> None:
    if fields:
        document = json.loads((folder / CONFIG_NAME).read_text())
        (folder / CONFIG_NAME).write_text(json.dumps({**document, **fields}))
    if tensors:
        changed = {key: value.contiguous().clone() for key, value in tensors(load_file(folder / TENSORS_NAME)).items()}
        save_file(changed, folder / TENSORS_NAME, {"format": "pt"})


def renamed(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key.replace(old, new): value for key, value in tensors.items()}


@contextmanager
def told(words: str | None) -> Iterator[None]:
    """Fails unless exactly what is expected is told: a warning with these words, or none."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    found = [str(item.message) for item in caught if issubclass(item.category, AdapterWarning)]
    assert any(words in text for text in found) if words is not None else not found, found


def loaded(folder: Path, model: nn.Module, words: str | None) -> Tensor:
    with told(words):
        adapters.load(model, folder)
    return logits(model)


def assert_as_the_reference(folder: Path, base: Callable[[], nn.Module], found: Tensor) -> None:
    """Where peft is installed; the other assertions stand without it."""
    if importlib.util.find_spec("peft") is None:
        return
    peft: Any = importlib.import_module("peft")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(base(), str(folder)).eval()
    assert float((logits(theirs) - found).abs().max()) <= 1e-6


def by_hand(scale: float, folder: Path) -> Tensor:
    """Logits of a base whose weights were changed by scale * B A of the file."""
    model, tensors = llama(), load_file(folder / TENSORS_NAME)
    for key, lora_a in tensors.items():
        if key.endswith(".lora_A.weight"):
            path = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
            delta = tensors[key.replace("lora_A", "lora_B")] @ lora_a
            with torch.no_grad():
                model.get_submodule(path).weight.add_(scale * delta)
    return logits(model)


SAME = 2.0
"""The scale lora_alpha / r that `written` leaves in the file."""
CONFIGURATIONS: Mapping[str, tuple[Mapping[str, Any], float, str | None]] = {
    "alpha 0": ({"lora_alpha": 0}, 0.0, "lora_alpha: 0"),
    "alpha negative": ({"lora_alpha": -6}, -1.5, "lora_alpha: -6"),
    "alpha of a pattern 0": ({"alpha_pattern": {"q_proj": 0, "v_proj": 0.0}}, 0.0, "alpha_pattern"),
    "dropout 1": ({"lora_dropout": 1.0}, SAME, "lora_dropout: 1.0"),
    "no layers": ({"layers_to_transform": []}, SAME, "every layer"),
    "layers beyond": ({"layers_to_transform": [0, 1, 9]}, SAME, "does not have: `9`"),
    "a target too many": ({"target_modules": ["q_proj", "nope", "v_proj"]}, SAME, "`nope`"),
    "an exclusion too many": ({"exclude_modules": ["nope"]}, SAME, "excludes nothing"),
    "an exclusion pattern too many": ({"exclude_modules": ".*nope"}, SAME, "excludes nothing"),
    "an empty exclusion": ({"exclude_modules": []}, SAME, None),
    "targets null": ({"target_modules": None}, SAME, "names nothing: the 4 modules"),
    "case folded": ({"target_modules": r"(?i).*\.(Q|V)_PROJ"}, SAME, None),
    "possessive": ({"target_modules": r"(?:[a-z_]++\.|\d++\.)*+(?:q|v)_proj"}, SAME, None),
    "atomic": ({"target_modules": r"(?>model\.layers\.)\d+\..*(q|v)_proj"}, SAME, None),
    "blocks by a pattern": ({"layers_to_transform": [0, 1], "layers_pattern": "(layers|h)"}, SAME, None),
    "switches null": ({"use_rslora": None, "use_dora": None, "lora_bias": None, "fan_in_fan_out": None}, SAME, "use_dora"),
    "more switches null": ({"use_qalora": None, "inference_mode": None, "ensure_weight_tying": None}, SAME, "tying"),
    "switches as numbers": ({"use_rslora": 0, "use_dora": 0}, SAME, "use_rslora"),
    "a switch as 1": ({"use_rslora": 1}, 2 * SAME, "use_rslora"),
    "start null": ({"init_lora_weights": None}, SAME, "init_lora_weights"),
    "start in capitals": ({"init_lora_weights": "Gaussian"}, SAME, None),
    "no invocation": ({"alora_invocation_tokens": []}, SAME, None),
    "velora": ({"velora_config": {"num_groups": 4}}, SAME, "VeLoRA"),
    "monteclora": ({"monteclora_config": {"num_samples": 4}}, SAME, "MonteCLoRA"),
    "qalora": ({"use_qalora": True}, SAME, "QALoRA"),
    "mica": ({"init_lora_weights": "mica"}, SAME, "MiCA"),
    "a pattern too many": ({"rank_pattern": {"nope": 3}}, SAME, None),
    "a weight too many": ({"target_parameters": ["nope.weight"]}, SAME, "`nope.weight`"),
    "a field of the future": ({"use_zora": True}, SAME, "use_zora"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(CONFIGURATIONS))
def test_odd_configurations(name: str, tmp_path: Path) -> None:
    fields, scale, words = CONFIGURATIONS[name]
    written(tmp_path, llama(), {})
    edit(tmp_path, fields)
    found = loaded(tmp_path, llama(), words)
    assert float((found - by_hand(scale, tmp_path)).abs().max()) < 1e-5
    assert_as_the_reference(tmp_path, llama, found)


def test_an_odd_file_is_written_again_as_it_is(tmp_path: Path) -> None:
    written(tmp_path / "one", llama(), {})
    edit(tmp_path / "one", {"lora_alpha": -6, "lora_dropout": 1.0, "exclude_modules": ["nope"], "velora_config": {}})
    model = llama()
    expected = loaded(tmp_path / "one", model, "lora_alpha: -6")
    adapters.save(model, tmp_path / "two")
    document = json.loads((tmp_path / "two" / CONFIG_NAME).read_text())
    assert (document["lora_alpha"], document["lora_dropout"], document["velora_config"]) == (-6, 1.0, None)
    assert torch.equal(loaded(tmp_path / "two", llama(), "lora_alpha: -6"), expected)


@pytest.mark.parametrize(
    "fields",
    [
        {"lora_dropout": 1.5},
        {"lora_alpha": "8"},
        {"lora_alpha": None},
        {"r": 0},
        {"layers_to_transform": [9]},
        {"target_modules": ["nope"]},
        {"alora_invocation_tokens": [3]},
        {"kasa_config": {}},
        {"init_lora_weights": "corda"},
    ],
    ids=str,
)
def test_what_makes_no_sense_is_still_refused(fields: Mapping[str, Any], tmp_path: Path) -> None:
    written(tmp_path, llama(), {})
    edit(tmp_path, fields)
    model = llama()
    before = logits(model)
    with pytest.raises(AdapterError):
        adapters.load(model, tmp_path)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("alpha", [0, -3])
def test_adalora_takes_its_rank_for_an_alpha_below_one(alpha: int, tmp_path: Path) -> None:
    section = {"type": "adalora", "init_r": 6, "target_r": 2, "lora_alpha": 6, "target_modules": ["q_proj"]}
    expected = written(tmp_path, llama(), section)
    edit(tmp_path, {"lora_alpha": alpha, "use_rslora": True, "velora_config": {}})
    found = loaded(tmp_path, llama(), f"lora_alpha: {alpha}")
    assert torch.equal(found, expected)
    assert_as_the_reference(tmp_path, llama, found)


LEFT_TO_THE_FAMILY: Mapping[str, Mapping[str, Any]] = {
    "ia3": {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "adalora": {"target_modules": ["q_proj", "v_proj"], "init_r": 4, "target_r": 2},
    "loha": {"target_modules": ["q_proj", "v_proj"]},
    "lokr": {"target_modules": ["q_proj", "v_proj"]},
    "oft": {"target_modules": ["q_proj", "v_proj"], "oft_block_size": 8},
    "vera": {"target_modules": ["q_proj", "v_proj"], "r": 8},
    "ln_tuning": {"target_modules": ["input_layernorm", "norm"]},
}


@pytest.mark.parametrize("method", list(LEFT_TO_THE_FAMILY))
def test_targets_that_are_left_to_the_family(method: str, tmp_path: Path) -> None:
    expected = written(tmp_path / "one", llama(), {"type": method, **LEFT_TO_THE_FAMILY[method]})
    edit(tmp_path / "one", {"target_modules": None, **({"feedforward_modules": None} if method == "ia3" else {})})
    model = llama()
    assert torch.equal(loaded(tmp_path / "one", model, "names nothing"), expected)
    if method != "ln_tuning":  # the reference's default has one norm more, and fails on a file without it
        assert_as_the_reference(tmp_path / "one", llama, expected)
    adapters.save(model, tmp_path / "two")
    assert json.loads((tmp_path / "two" / CONFIG_NAME).read_text())["target_modules"]
    assert torch.equal(loaded(tmp_path / "two", llama(), None), expected)


def test_default_names_of_norms_on_a_falcon_without_one_of_them(tmp_path: Path) -> None:
    def falcon() -> Any:
        torch.manual_seed(0)
        sizes = {"vocab_size": 128, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        return FalconForCausalLM(FalconConfig(**sizes)).eval()

    expected = written(tmp_path, falcon(), {"type": "ln_tuning", "target_modules": ["input_layernorm", "ln_f"]})
    edit(tmp_path, {"target_modules": ["input_layernorm", "post_attention_layernorm", "ln_f"]})
    found = loaded(tmp_path, falcon(), "`post_attention_layernorm`")
    assert torch.equal(found, expected)
    assert_as_the_reference(tmp_path, falcon, found)


# -- keys ----------------------------------------------------------------------------------------------------------

KEYS: Mapping[str, tuple[Callable[[Tensors], Tensors], str | None]] = {
    "live names": (lambda t: {k.replace(".weight", ".default.weight"): v for k, v in t.items()}, None),
    "another name": (lambda t: {k.replace(".weight", ".poet.weight"): v for k, v in t.items()}, None),
    "compiled": (renamed(PREFIX, f"{PREFIX}_orig_mod."), "`_orig_mod`"),
    "compiled whole": (renamed(PREFIX, f"_orig_mod.{PREFIX}"), "`_orig_mod`"),
    "data parallel": (renamed(PREFIX, f"module.{PREFIX}"), "`module`"),
    "data parallel inside": (renamed(PREFIX, f"{PREFIX}module."), "`module`"),
    "sharded": (renamed("layers.", "layers._fsdp_wrapped_module."), "`_fsdp_wrapped_module`"),
    "checkpointed": (renamed("self_attn", "_checkpoint_wrapped_module.self_attn"), "`_checkpoint_wrapped_module`"),
    "all of them": (renamed(PREFIX, f"module._orig_mod.{PREFIX}_fsdp_wrapped_module."), "`_fsdp_wrapped_module`"),
}


@pytest.mark.parametrize("name", list(KEYS))
def test_names_that_wrappers_left(name: str, tmp_path: Path) -> None:
    change, words = KEYS[name]
    expected = written(tmp_path, llama(), {})
    edit(tmp_path, tensors=change)
    assert torch.equal(loaded(tmp_path, llama(), words), expected)


def mlx(tensors: Tensors) -> Tensors:
    names = {"lora_A.weight": "lora_a", "lora_B.weight": "lora_b"}
    bare = {key.removeprefix(PREFIX): value for key, value in tensors.items()}
    return {f"{key[: -len(end)]}{names[end]}": v.T for key, v in bare.items() for end in names if key.endswith(end)}


OTHER_TOOLS: Mapping[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "mlx": (mlx, "as MLX names them"),
    "prefix twice": (renamed(PREFIX, 2 * PREFIX), "twice"),
    "no prefix": (renamed(PREFIX, ""), "nowhere"),
}


@pytest.mark.parametrize("name", list(OTHER_TOOLS))
def test_keys_of_other_tools_are_named_and_converted(name: str, tmp_path: Path) -> None:
    change, words = OTHER_TOOLS[name]
    expected = written(tmp_path / "one", llama(), {})
    llama().save_pretrained(tmp_path / "base")
    edit(tmp_path / "one", {"base_model_name_or_path": str(tmp_path / "base")}, change)
    with pytest.raises(AdapterError, match="another tool") as caught:
        adapters.load(llama(), tmp_path / "one")
    assert words in caught.value.render()
    assert "peft convert" in caught.value.render()
    convert_adapter(tmp_path / "one", to="peft", output=tmp_path / "two")
    found = loaded(tmp_path / "two", llama(), None)
    assert torch.equal(found, expected)
    assert_as_the_reference(tmp_path / "two", llama, found)


def test_two_keys_of_one_tensor(tmp_path: Path) -> None:
    written(tmp_path, llama(), {})
    edit(tmp_path, tensors=lambda tensors: {**tensors, **renamed(PREFIX, f"module.{PREFIX}")(tensors)})
    with pytest.raises(AdapterError, match="are one tensor"):
        adapters.load(llama(), tmp_path)


renames_the_head = pytest.mark.skipif(hasattr(neox(), "embed_out"), reason="this transformers has the former name")


@renames_the_head
@pytest.mark.parametrize("of_keys", [True, False], ids=["keys too", "target only"])
def test_a_head_that_transformers_renamed(of_keys: bool, tmp_path: Path) -> None:
    expected = written(tmp_path, neox(), {"target_modules": ["query_key_value", "lm_head"]})
    edit(
        tmp_path,
        {"target_modules": ["query_key_value", "embed_out"]},
        renamed("lm_head", "embed_out") if of_keys else None,
    )
    assert torch.equal(loaded(tmp_path, neox(), "`embed_out` is `lm_head`"), expected)


@renames_the_head
def test_a_renamed_target_without_tensors(tmp_path: Path) -> None:
    expected = written(tmp_path, neox(), {"target_modules": ["query_key_value"]})
    edit(tmp_path, {"target_modules": ["query_key_value", "embed_out"]})
    found = loaded(tmp_path, neox(), "`embed_out`")
    assert torch.equal(found, expected)
    assert_as_the_reference(tmp_path, neox, found)


# -- what a file brings along of the base ----------------------------------------------------------------------------


def resized(tied: bool, rows: int = 133) -> Any:
    model = llama(tie_word_embeddings=tied)
    torch.manual_seed(5)
    model.resize_token_embeddings(rows, mean_resizing=False)
    model.lm_head.out_features = rows  # transformers 5.3 leaves it as it was where the tables are tied
    return model.eval()


EMBEDDINGS = ("model.embed_tokens", "lm_head")
SECTIONS: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "plain": ({}, "{path}.weight"),
    "saved whole": ({"modules_to_save": ["embed_tokens", "lm_head"]}, "{path}.original_module.weight"),
    "adapted": ({"target_modules": ["q_proj", "embed_tokens", "lm_head"]}, "{path}.base_layer.weight"),
    "tokens": ({"trainable_token_indices": [3, 130]}, "{path}.token_adapter.base_layer.weight"),
}


def with_embeddings(folder: Path, model: Any, name: str) -> Tensor:
    """As the reference saves a model whose embeddings were changed: its tables lie in the file too."""
    section, key = SECTIONS[name]
    tables = {path: model.get_submodule(path).weight for path in EMBEDDINGS}
    with torch.no_grad():
        for table in {id(table): table for table in tables.values()}.values():
            table.add_(torch.empty(table.shape).normal_(0.0, 0.02, generator=torch.Generator().manual_seed(2)))
    expected = written(folder, model, {"target_modules": ["q_proj"], **section})

    def add(tensors: Tensors) -> Tensors:
        found = {PREFIX + key.format(path=path): table.detach().clone() for path, table in tables.items()}
        if name == "saved whole":
            for path in EMBEDDINGS:
                trained = tensors.get(f"{PREFIX}{path}.weight")
                # tied tables that are trained apart, as the reference does without ensure_weight_tying
                found[f"{PREFIX}{path}.weight"] = (
                    tensors[f"{PREFIX}model.embed_tokens.weight"] if trained is None else trained
                )
                found[f"{PREFIX}{path}.modules_to_save.weight"] = found[f"{PREFIX}{path}.weight"]
        if name == "tokens" and model.config.tie_word_embeddings:
            rows = f"{PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta"
            found[rows.replace("model.embed_tokens", "lm_head")] = tensors[rows]
        elif name == "tokens":
            del found[f"{PREFIX}lm_head.token_adapter.base_layer.weight"]
            found[f"{PREFIX}lm_head.weight"] = tables["lm_head"].detach().clone()
        return {**tensors, **found}

    edit(folder, tensors=add)
    return expected


@pytest.mark.parametrize("tied", [False, True], ids=["apart", "tied"])
@pytest.mark.parametrize("name", list(SECTIONS))
def test_resized_vocabularies(name: str, tied: bool, tmp_path: Path) -> None:
    expected = with_embeddings(tmp_path, resized(tied), name)
    words = None if name == "saved whole" else "differs from this base's"
    found = loaded(tmp_path, resized(tied), words)
    assert float((found - expected).abs().max()) < 1e-6
    assert_as_the_reference(tmp_path, lambda: resized(tied), found)
    small = llama(tie_word_embeddings=tied)
    before, words = logits(small), None if name == "saved whole" else "has 133 rows, the base has 128"
    assert torch.equal(loaded(tmp_path, small, words), found)
    assert small.config.vocab_size == 133
    with adapters.disabled(small):
        assert torch.equal(logits(small), before)
    adapters.detach(small)
    assert torch.equal(logits(small), before)
    assert (small.config.vocab_size, small.lm_head.out_features) == (128, 128)


@pytest.mark.parametrize("name", ["plain", "adapted", "tokens"])
def test_a_resized_vocabulary_is_merged_and_saved_again(name: str, tmp_path: Path) -> None:
    expected = with_embeddings(tmp_path / "one", resized(True), name)
    model = llama(tie_word_embeddings=True)
    loaded(tmp_path / "one", model, "has 133 rows")
    adapters.save(model, tmp_path / "two")
    again = llama(tie_word_embeddings=True)
    # with our own file beside it, the fingerprint is that of the base, not of what the file brought along
    assert torch.equal(loaded(tmp_path / "two", again, "has 133 rows"), logits(model))
    adapters.merge(model)
    assert float((logits(model) - expected).abs().max()) < 1e-5
    model.save_pretrained(tmp_path / "merged")
    plain = LlamaForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert torch.equal(logits(plain), logits(model))


@pytest.mark.parametrize("kind", ["the same", "rounded", "another"])
def test_copies_of_the_base(kind: str, tmp_path: Path) -> None:
    written(tmp_path, llama(), {"target_modules": ["q_proj", "embed_tokens", "lm_head"]})
    base, key = llama(), PREFIX + "{}.base_layer.weight"
    change: Callable[[Tensor], Tensor] = {"rounded": Tensor.bfloat16, "another": lambda w: w * 1.5}.get(
        kind, torch.clone
    )
    tables = {path: change(base.get_submodule(path).weight.detach()) for path in EMBEDDINGS}
    edit(tmp_path, tensors=lambda tensors: {**tensors, **{key.format(path): table for path, table in tables.items()}})
    words = {"rounded": "rounded to bfloat16", "another": "in 128 of 128 rows"}.get(kind)
    found = loaded(tmp_path, llama(), words)
    right = llama()
    with torch.no_grad():
        for path, table in tables.items():
            right.get_submodule(path).weight.copy_(table)
    edit(tmp_path, tensors=lambda tensors: {key: value for key, value in tensors.items() if "base_layer" not in key})
    assert torch.equal(loaded(tmp_path, right, None), found)


def test_a_head_brings_its_bias_along(tmp_path: Path) -> None:
    def base() -> Any:
        torch.manual_seed(0)
        config = PhiConfig(**{key: value for key, value in SIZES.items() if key != "num_key_value_heads"})
        model = PhiForCausalLM(config).eval()
        torch.nn.init.normal_(model.lm_head.bias, generator=torch.Generator().manual_seed(1))
        return model

    expected = written(tmp_path, base(), {"target_modules": ["q_proj", "lm_head"]})
    head = base().lm_head
    copies = {f"{PREFIX}lm_head.base_layer.{name}": value.detach() for name, value in head.named_parameters()}
    edit(tmp_path, tensors=lambda tensors: {**tensors, **copies})
    found = loaded(tmp_path, base(), None)
    assert torch.equal(found, expected)
    assert_as_the_reference(tmp_path, base, found)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_folder_of_mlx(kind: str, tmp_path: Path) -> None:
    fields = {"target_modules": ["q_proj", "v_proj"], "use_dora": kind == "dora"}
    expected = written(tmp_path / "one", llama(), {**fields})
    llama().save_pretrained(tmp_path / "base")
    tensors = load_file(tmp_path / "one" / TENSORS_NAME)
    lengths = {
        key.removeprefix(PREFIX).replace("lora_magnitude_vector", "m"): value
        for key, value in tensors.items()
        if "magnitude" in key
    }
    found = {key: value.contiguous() for key, value in {**mlx(tensors), **lengths}.items()}
    (tmp_path / "mlx").mkdir()
    save_file(found, tmp_path / "mlx" / "adapters.safetensors", {"format": "mlx"})
    document = {
        "fine_tune_type": kind,
        "lora_parameters": {"rank": 4, "scale": 2.0, "dropout": 0.0},
        "model": str(tmp_path / "base"),
        "num_layers": 2,
    }
    (tmp_path / "mlx" / CONFIG_NAME).write_text(json.dumps(document))
    with pytest.raises(AdapterError, match="adapter of MLX") as caught:
        read_config(tmp_path / "mlx")
    assert "peft convert" in caught.value.render()
    convert_adapter(tmp_path / "mlx", to="peft", output=tmp_path / "two")
    converted = loaded(tmp_path / "two", llama(), None)
    assert float((converted - expected).abs().max()) < 1e-6
    assert_as_the_reference(tmp_path / "two", llama, converted)


@pytest.mark.parametrize(
    "fields",
    [{"fine_tune_type": "full"}, {"lora_parameters": {"rank": 4}}, {"lora_parameters": {"rank": "4", "scale": 1.0}}],
    ids=str,
)
def test_a_folder_of_mlx_that_has_no_counterpart(fields: Mapping[str, Any], tmp_path: Path) -> None:
    document = {"fine_tune_type": "lora", "lora_parameters": {"rank": 4, "scale": 2.0}, **fields}
    (tmp_path / CONFIG_NAME).write_text(json.dumps(document))
    save_file({"model.layers.0.self_attn.q_proj.lora_a": torch.zeros(64, 4)}, tmp_path / "adapters.safetensors")
    with pytest.raises(AdapterError):
        adapters.load(llama(), tmp_path)
