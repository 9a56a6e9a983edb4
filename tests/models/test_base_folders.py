"""Base folders that somebody else made: only regular files in them are read, what is read is hashed, nothing waits."""

# ruff: noqa: E501 - a table reads best with an entry a line

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.errors
import pytest
import torch
from safetensors.torch import load_file, save_file

from peftcli import files
from peftcli.errors import DeviceError, HubError, ModelError
from peftcli.models import hub
from peftcli.models.base_config import load_config
from peftcli.models.builtin import builtin_base
from peftcli.models.load import load_model
from peftcli.models.skeleton import meta_model
from peftcli.models.snapshot import snapshot
from peftcli.models.source import BaseSource, resolve_base
from peftcli.models.tokenizer import load_tokenizer
from peftcli.models.view import shown_folder

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
KEY = "model.layers.0.self_attn.q_proj.weight"
COMMIT, OTHER = "1" * 40, "2" * 40


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return Path(shutil.copytree(builtin_base("tiny"), tmp_path / "base"))


def source_of(folder: Path) -> BaseSource:
    return resolve_base(str(folder), folder=Path.cwd())


def configured(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def scaled(source: Path, target: Path, factor: float = 1.5) -> None:
    """Other weights of the same shapes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value * factor for key, value in load_file(source).items()}, target, {"format": "pt"})


def weight(folder: Path) -> torch.Tensor:
    """A copy: what is loaded may lie in the file itself, which the test writes anew."""
    return load_model(source_of(folder)).get_parameter(KEY).detach().clone()


def sharded(folder: Path, place: str = "") -> None:
    """The weights as two shards and an index, without the single file."""
    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    (folder / place).mkdir(exist_ok=True)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2])):
        name = f"{place}part-{number}.safetensors"
        save_file({key: tensors[key] for key in part}, folder / name, {"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / WEIGHTS).unlink()


# -- what is read is what is hashed ------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["", "weights/"])
def test_shards_are_read_and_hashed_wherever_the_index_puts_them_inside_the_folder(base: Path, place: str) -> None:
    expected = weight(base)
    sharded(base, place)
    assert torch.equal(weight(base), expected)
    assert {INDEX, f"{place}part-0.safetensors", f"{place}part-1.safetensors"} <= set(snapshot(source_of(base)).files)


def test_the_weights_that_the_configuration_names_are_read_and_hashed(base: Path) -> None:
    scaled(base / WEIGHTS, base / "deep" / "other.safetensors")
    expected = 1.5 * weight(base)
    configured(base, transformers_weights="deep/other.safetensors")
    assert torch.equal(weight(base), expected)
    found = snapshot(source_of(base)).files
    assert "deep/other.safetensors" in found
    assert WEIGHTS not in found, "it is not read"


def test_the_single_file_hides_an_index_and_is_what_is_hashed(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "shards")
    sharded(tmp_path / "shards")
    expected = weight(base)
    for path in (tmp_path / "shards").glob("*part-*"):
        scaled(path, base / path.name)
    shutil.copy(tmp_path / "shards" / INDEX, base / INDEX)
    assert torch.equal(weight(base), expected)
    found = snapshot(source_of(base)).files
    assert WEIGHTS in found
    assert not {INDEX, "part-0.safetensors"} & set(found)


def test_templates_of_their_own_folder_are_hashed(base: Path) -> None:
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tool_use.jinja").write_text("{{ messages }}")
    assert "tool_use" in load_tokenizer(source_of(base)).chat_template
    assert "additional_chat_templates/tool_use.jinja" in snapshot(source_of(base)).files


@pytest.mark.parametrize("name", ["notes.safetensors", "pytorch_model.bin", "adapter_config.json", "training_args.bin"])
def test_a_file_that_is_not_of_the_base_changes_nothing(base: Path, name: str) -> None:
    before = {name: files.sha256_file(path) for name, path in snapshot(source_of(base)).files.items()}
    (base / name).write_bytes(b"{}")
    assert {name: files.sha256_file(path) for name, path in snapshot(source_of(base)).files.items()} == before
    assert weight(base).shape == (64, 64) or weight(base).dim() == 2


def test_every_file_that_python_opens_while_loading_is_one_that_is_hashed(base: Path) -> None:
    """An audit hook sees what transformers opens; the weights are mapped by safetensors, which it does not see."""
    sharded(base, "weights/")
    hashed = {str(path.resolve()) for path in snapshot(source_of(base)).files.values()}
    opened: set[str] = set()
    watching = True

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            opened.add(os.path.realpath(os.fsdecode(arguments[0])))

    sys.addaudithook(watch)
    load_tokenizer(source_of(base))
    load_model(source_of(base))
    watching = False
    read = {path for path in opened if path.startswith(str(base.resolve()) + os.sep)}
    assert read, "the hook saw nothing"
    assert read <= hashed


# -- what is refused ---------------------------------------------------------------------------------------------


def linked(name: str, target: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return change


def piped(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return change


def named(value: Any) -> Callable[[Path], None]:
    return lambda folder: configured(folder, transformers_weights=value)


def index_of(name: str) -> Callable[[Path], None]:
    """An index, named by the configuration, whose only shard is `name`."""

    def change(folder: Path) -> None:
        (folder / "own.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {KEY: name}}))
        configured(folder, transformers_weights="own.safetensors.index.json")

    return change


def beside_an_index(folder: Path) -> None:
    sharded(folder)
    (folder / WEIGHTS).symlink_to(folder.parent / "outside.safetensors")


OUTSIDE = "../outside.safetensors"
REFUSED = {
    "weights named outside": (named(OUTSIDE), "not a safetensors file inside the folder"),
    "weights named by an absolute path": (named("/etc/hosts.safetensors"), "not a safetensors file inside the folder"),
    "weights named with a way back": (named("deep/../../outside.safetensors"), "not a safetensors file inside"),
    "pickled weights named": (named("pytorch_model.bin"), "not a safetensors file inside the folder"),
    "an adapter's pickle named": (named("adapter_model.bin"), "not a safetensors file inside the folder"),
    "a number named": (named(7), "not a safetensors file inside the folder"),
    "an index that leads outside": (index_of(OUTSIDE), "which is not a plain file name"),
    "an index of a pickle": (index_of("pytorch_model.bin"), "which is not a plain file name"),
    "an index of nothing": (index_of("gone.safetensors"), "gone.safetensors is missing"),
    "weights are a link outside": (linked(WEIGHTS, OUTSIDE), "model.safetensors is a link that leads outside"),
    "weights are a link beside a real index": (beside_an_index, "model.safetensors is a link that leads outside"),
    "weights lead nowhere": (linked(WEIGHTS, "gone"), "model.safetensors is a link that leads nowhere"),
    "weights are a pipe": (piped(WEIGHTS), "model.safetensors is not a regular file"),
    "named weights are a pipe": (lambda folder: (piped("w.safetensors")(folder), named("w.safetensors")(folder)), "w.safetensors is not a regular file"),
    "the configuration is a pipe": (piped("config.json"), "config.json is not a regular file"),
    "the configuration is a link": (linked("config.json", "../outside.json"), "config.json is a link that leads outside"),
    "the generation settings are a pipe": (piped("generation_config.json"), "generation_config.json is not a regular file"),
    "the tokenizer is a pipe": (piped("tokenizer.json"), "tokenizer.json is not a regular file"),
    "a file that the tokenizer alone names is a pipe": (piped("added_tokens.json"), "added_tokens.json is not a regular file"),
    "a template is a link": (linked("chat_template.jinja", "../outside.json"), "chat_template.jinja is a link that leads outside"),
    "a further template is a pipe": (piped("additional_chat_templates/x.jinja"), "x.jinja is not a regular file"),
    "another configuration is named": (lambda folder: configured(folder, configuration_files=["config.4.0.0.json"]), "configuration_files"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_folder_that_leads_elsewhere_is_refused_by_loading_and_by_hashing(base: Path, case: str) -> None:
    change, says = REFUSED[case]
    scaled(base / WEIGHTS, base.parent / "outside.safetensors")
    shutil.copy(base / "config.json", base.parent / "outside.json")
    change(base)

    def loaded() -> None:
        source = source_of(base)
        load_tokenizer(source)
        load_model(source)

    for attempt in (loaded, lambda: snapshot(source_of(base))):
        with pytest.raises(ModelError, match=says):
            attempt()


def test_links_inside_the_folder_are_followed(base: Path) -> None:
    expected = weight(base)
    (base / WEIGHTS).rename(base / "real.safetensors")
    (base / WEIGHTS).symlink_to("real.safetensors")
    assert torch.equal(weight(base), expected)


# -- the Hub's cache ---------------------------------------------------------------------------------------------


def in_cache(cache: Path, base: Path, commit: str = COMMIT, *, name: str = "someone/base") -> Path:
    """A base as the Hub's cache lays it out: snapshots of links into blobs."""
    repository = cache / f"models--{name.replace('/', '--')}"
    place = repository / "snapshots" / commit
    (repository / "blobs").mkdir(parents=True, exist_ok=True)
    for path in sorted(path for path in base.rglob("*") if path.is_file()):
        blob = repository / "blobs" / files.sha256_file(path)
        shutil.copy(path, blob)
        link = place / path.relative_to(base)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
    return place


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.parametrize("place", [None, "weights/"])
def test_a_base_of_the_hub_is_read_by_the_same_rule(base: Path, cache: Path, place: str | None) -> None:
    expected = weight(base)
    if place is not None:
        sharded(base, place)
    folder = in_cache(cache, base)
    source = resolve_base("someone/base", folder=cache)
    model = load_model(source)
    assert torch.equal(model.get_parameter(KEY), expected)
    assert (model.config._name_or_path, model.config._commit_hash) == ("someone/base", COMMIT)
    assert snapshot(source).files == snapshot(source_of(folder)).files
    assert len(load_tokenizer(source)) == len(load_tokenizer(source_of(base)))


def test_a_link_of_the_cache_leads_into_the_blobs_of_its_own_repository_alone(base: Path, cache: Path) -> None:
    folder = in_cache(cache, base)
    stranger = in_cache(cache, base, name="someone/private")
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to((stranger / WEIGHTS).resolve())
    with pytest.raises(ModelError, match="leads outside the folder"):
        load_model(resolve_base("someone/base", folder=cache))


def test_an_index_of_the_hub_leads_no_further_than_one_of_a_folder(base: Path, cache: Path) -> None:
    in_cache(cache, base, name="someone/private")
    (base / WEIGHTS).unlink()
    outside = f"../../../models--someone--private/snapshots/{COMMIT}/{WEIGHTS}"
    (base / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": {KEY: outside}}))
    in_cache(cache, base)
    with pytest.raises(ModelError, match="not a plain file name"):
        load_model(resolve_base("someone/base", folder=cache))


def test_each_revision_is_the_one_that_is_asked_for(base: Path, cache: Path) -> None:
    in_cache(cache, base, OTHER)
    plain = weight(base)
    scaled(base / WEIGHTS, base / WEIGHTS)
    in_cache(cache, base)
    for revision, expected in ((None, 1.5 * plain), ("main", 1.5 * plain), (OTHER, plain)):
        source = resolve_base("someone/base", folder=cache, revision=revision)
        assert torch.equal(load_model(source).get_parameter(KEY), expected)
    with pytest.raises(HubError, match="local cache"):
        load_model(resolve_base("someone/base", folder=cache, revision="gone"))


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_a_base_in_the_cache_needs_no_network(
    base: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, revision: str | None
) -> None:
    in_cache(cache, base)
    from_cache = hub.snapshot_download

    def no_network(*args: Any, local_files_only: bool = False, **kwargs: Any) -> str:
        if not local_files_only:
            raise huggingface_hub.errors.HTTPError("Name or service not known")  # type: ignore[attr-defined]
        return str(from_cache(*args, local_files_only=True, **kwargs))

    monkeypatch.setattr(hub, "snapshot_download", no_network)
    source = resolve_base("someone/base", folder=cache, revision=revision)
    assert torch.equal(load_model(source).get_parameter(KEY), weight(base))
    with pytest.raises(HubError, match="Hub cannot be reached"):
        load_config(resolve_base("someone/other", folder=cache, revision=revision))


def test_what_the_hub_answers_is_told_though_the_base_is_in_the_cache(
    base: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_cache(cache, base)
    answer = huggingface_hub.errors.GatedRepoError.__new__(huggingface_hub.errors.GatedRepoError)

    def gated(*args: Any, **kwargs: Any) -> str:
        raise answer

    monkeypatch.setattr(hub, "snapshot_download", gated)
    with pytest.raises(HubError, match="is gated"):
        load_config(resolve_base("someone/base", folder=cache))


def test_the_shown_folder_is_gone_afterwards(base: Path) -> None:
    with shown_folder(source_of(base), weights=True) as shown:
        assert (shown.path / WEIGHTS).is_file()
    assert not shown.path.exists()
    assert (base / WEIGHTS).is_file()


# -- what cannot be used is refused before the weights -----------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"quantization_config": {"quant_method": "mxfp4"}},
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"compression_config": {"quant_method": "compressed-tensors"}},
        {"text_config": {"quantization_config": {"quant_method": "fp8"}}},
    ],
)
def test_a_quantized_checkpoint_is_refused_from_its_configuration(base: Path, changes: dict[str, Any]) -> None:
    configured(base, **changes)
    for attempt in (load_config, meta_model, load_model):
        with pytest.raises(ModelError, match="stored quantized") as caught:
            attempt(source_of(base))
        assert "where there is one" in str(caught.value)


def test_a_checkpoint_of_bitsandbytes_needs_its_package(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "bitsandbytes" else found(name)
    )
    configured(base, quantization_config={"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"})
    for attempt in (load_config, meta_model, load_model):
        with pytest.raises(DeviceError, match=r"stored quantized \(nf4\).*package bitsandbytes"):
            attempt(source_of(base))


def test_weights_in_eight_bits_are_refused_though_no_configuration_says_so(base: Path) -> None:
    tensors = load_file(base / WEIGHTS)
    save_file({**tensors, KEY: tensors[KEY].to(torch.float8_e4m3fn)}, base / WEIGHTS, {"format": "pt"})
    with pytest.raises(ModelError, match="stored quantized"):
        load_model(source_of(base))


AUTO_MAP = {"AutoConfig": "configuration_own.Own", "AutoModelForCausalLM": "modeling_own.Own"}


def test_code_beside_a_family_that_transformers_has_is_never_run_and_no_reason_to_refuse(base: Path) -> None:
    expected = weight(base)
    for name in ("configuration_own.py", "modeling_own.py"):
        (base / name).write_text("raise SystemExit('this must never run')")
    configured(base, auto_map=AUTO_MAP)
    assert torch.equal(weight(base), expected)
    assert meta_model(source_of(base)).config.model_type == "llama"


def test_code_of_a_family_that_transformers_does_not_have_is_refused(base: Path) -> None:
    configured(base, auto_map=AUTO_MAP, model_type="own_family")
    with pytest.raises(ModelError, match="asks to run its own code"):
        load_config(source_of(base))


def test_weights_that_only_the_models_own_code_has_a_place_for_are_an_error(base: Path) -> None:
    """The family's class would answer otherwise than the code that the checkpoint was trained with."""
    configured(base, auto_map=AUTO_MAP)
    tensors = load_file(base / WEIGHTS)
    save_file({**tensors, KEY.replace("weight", "own_gate"): torch.ones(3)}, base / WEIGHTS, {"format": "pt"})
    with pytest.raises(ModelError, match="own_gate"):
        load_model(source_of(base))
