"""Twenty shapes of credentials, planted wherever a user may have them: none reaches a file, a message or a log."""

from __future__ import annotations

import json
import random
import re
import string
from pathlib import Path

import pytest
from hostile_case import GOOD as SHORT

from peftcli.cli import entry
from peftcli.cli.entry import run as peft
from peftcli.redaction import holds_secret, is_secret_key, redacted

GOOD = SHORT.replace("max_length: 160", "max_length: 400")
LETTERS, DIGITS, HEX = string.ascii_letters, string.digits, "0123456789abcdef"


def made(length: int, alphabet: str = LETTERS + DIGITS) -> str:
    """Random, so that nothing here is anybody's."""
    return "".join(random.Random(f"{length}{alphabet}").choices(alphabet, k=length))


BY_SHAPE = {
    "Hugging Face": "hf_" + made(34),
    "GitHub": "ghp_" + made(36),
    "GitHub app": "ghs_" + made(36),
    "GitHub fine-grained": "github_pat_" + made(22) + "_" + made(59),
    "GitLab": "glpat-" + made(20),
    "OpenAI": "sk-proj-" + made(48),
    "Anthropic": "sk-ant-api03-" + made(40),
    "Stripe": "sk_live_" + made(24),
    "AWS": "AKIA" + made(16, string.ascii_uppercase + DIGITS),
    "AWS session": "ASIA" + made(16, string.ascii_uppercase + DIGITS),
    "Slack": "xoxb-" + made(12, DIGITS) + "-" + made(24),
    "Google": "AIza" + made(35),
    "npm": "npm_" + made(36),
    "PyPI": "pypi-" + made(60),
    "Docker": "dckr_pat_" + made(27),
    "Databricks": "dapi" + made(32, HEX),
    "JSON web token": "eyJ" + made(20) + ".eyJ" + made(30) + "." + made(43),
}
BY_NAME = {
    "WANDB_API_KEY": made(40, HEX),
    "AWS_SECRET_ACCESS_KEY": made(40, LETTERS + DIGITS + "+"),
    "DATABASE_PASSWORD": 'p"a<s&s ' + made(14),
}
SECRETS = {**BY_SHAPE, **BY_NAME}
PASSWORD_IN_URL = made(15)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for number, (name, secret) in enumerate(SECRETS.items()):
        monkeypatch.setenv(name if name in BY_NAME else f"SERVICE_{number}_TOKEN", secret)


def leaks(text: str) -> list[str]:
    """Which secrets a text holds, in whatever way it may be written."""
    undone = [text, text.replace('\\"', '"'), text.replace("&lt;", "<").replace("&quot;", '"').replace("&amp;", "&")]
    every = {**SECRETS, "password in an address": PASSWORD_IN_URL}
    return [name for name, secret in every.items() if any(secret in written for written in undone)]


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_bytes().decode("utf-8", "replace")
            for path in folder.rglob("*") if path.is_file()}  # fmt: skip


def test_there_are_twenty() -> None:
    assert len(set(SECRETS.values())) == 20


@pytest.mark.usefixtures("environment")
def test_none_is_in_any_artefact_of_a_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """In the environment, in the folder's and the recipe's names, in the rows that are trained on, in a warning."""
    folder = tmp_path / "in"
    for secret in SECRETS.values():
        folder = folder / secret.replace("/", "-")
    folder.mkdir(parents=True)
    rows = [
        {"prompt": f"The key is {secret}, keep it.", "completion": f"It is {secret}."} for secret in SECRETS.values()
    ]
    rows.append({"prompt": f"postgres://admin:{PASSWORD_IN_URL}@db/x", "completion": f"password={PASSWORD_IN_URL}"})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = folder / f"{SECRETS['Hugging Face']}.yaml"
    recipe.write_text(
        GOOD.replace("{path: builtin:support, rows: 12}", str(tmp_path / "rows.jsonl")).replace(
            "samples: 0", "samples: 2"
        )
    )
    assert peft(["train", str(recipe), "--output", str(folder / "run"), "--quiet"]) == 0
    printed = "".join(capfd.readouterr())
    assert peft(["inspect", str(folder / "run"), "--json"]) == 0
    assert peft(["report", str(folder / "run")]) == 0
    assert peft(["train", str(recipe), "--output", str(folder / "run")]) == 6
    printed += "".join(capfd.readouterr())
    assert leaks(printed) == []
    found = contents(folder / "run")
    assert {"run.json", "recipe.yaml", "report.html", "report.md", "metrics.jsonl"} <= set(found)
    assert {name: held for name, text in found.items() if (held := leaks(text))} == {}
    assert "***" in found["run.json"], "the rows are shown, without what they held"
    json.loads(found["run.json"])


@pytest.mark.parametrize("name", BY_SHAPE)
def test_a_recipe_that_holds_one_is_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret = SECRETS[name]
    (tmp_path / "r.yaml").write_text(GOOD + f"generation: {{system_prompt: 'my key is {secret} ok'}}\n")
    (tmp_path / "good.yaml").write_text(GOOD)
    for arguments in (
        ["validate", str(tmp_path / "r.yaml")],
        ["validate", str(tmp_path / "good.yaml"), "--set", f"generation.system_prompt={secret}"],
        ["validate", str(tmp_path / "good.yaml"), "--set", f"{secret}=1"],
        ["validate", str(tmp_path / "good.yaml"), "--json", "--set", f"seed={secret}"],
        ["validate", str(tmp_path / secret / "r.yaml")],
        ["train", str(tmp_path / "good.yaml"), f"--{secret}"],
        [secret],
    ):
        assert peft(arguments) == 2
        printed = "".join(capsys.readouterr())
        assert leaks(printed) == [], printed
        assert printed


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("name", BY_NAME)
def test_one_of_the_environment_is_refused_in_a_recipe(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(GOOD + f"generation: {{system_prompt: {json.dumps(SECRETS[name])}}}\n")
    assert peft(["validate", str(recipe)]) == 2
    printed = "".join(capsys.readouterr())
    assert "holds a secret" in printed
    assert leaks(printed) == []


@pytest.mark.usefixtures("environment")
def test_the_log_of_a_bug_holds_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object) -> None:
        raise LookupError(
            " ".join([*SECRETS.values(), f"https://me:{PASSWORD_IN_URL}@host/", f"token={PASSWORD_IN_URL}"])
        )

    monkeypatch.setattr("peftcli.recipe.load_recipe", fail)
    monkeypatch.setattr(entry.tempfile, "tempdir", str(tmp_path))
    for traceback in ("", "1"):
        monkeypatch.setenv("PEFTCLI_TRACEBACK", traceback)
        assert peft(["validate", "r.yaml"]) == 1
    printed = "".join(capsys.readouterr())
    logs = [path.read_text() for path in tmp_path.glob("peftcli-*.log")]
    assert len(logs) == 2
    assert leaks(printed + "".join(logs)) == []


@pytest.mark.parametrize("name", SECRETS)
def test_a_name_before_it_gives_any_value_away(name: str) -> None:
    secret = SECRETS[name].replace('"', "").replace("<", "").replace("&", "").replace(" ", "")
    for text in (
        f"wandb_api_key: {secret}",
        f'{{"hub_token": "{secret}"}}',
        f"PASSWORD={secret}",
        f"?access_key={secret}&x=1",
    ):
        assert secret not in redacted(text), text


INNOCENT = [
    "num_tokens: 123456789",
    '"tokens": 123456789012, "trained_tokens": 99999999999, "tokens_per_second": 123456.789',
    "cls_token=[CLS]aaaaaaa, eos_token: <|endoftext|>, pad_token_id: 1234567890",
    '"eos_token": "<|im_end|>", "unk_token": "unknownunknown", "mask_token": "[MASK]xxxxxx"',
    "max_new_tokens=1000000000 num_virtual_tokens: 2000000000",
    "the data tokens was 'abcdefabcdefabcdefabcdef' and is now 'x'",
    '"sha256": "' + made(64, HEX) + '"',
    "https://huggingface.co/a/b?x=1 and user@example.com, at 12:30:45",
    "model.layers.0.self_attn.k_proj.weight",
    "target_modules: [q_proj, v_proj], key_value_states: abcdefghij",
    "sk-learn and hf_hub and ghp_short",
]


@pytest.mark.parametrize("text", INNOCENT)
def test_innocent_text_is_kept(text: str) -> None:
    assert redacted(text) == text
    assert not holds_secret(text)


@pytest.mark.parametrize(
    "key", ["num_tokens", "cls_token", "eos_token", "pad-token", "max_new_tokens", "tokens", "key", "tokenizer"]
)
def test_innocent_keys(key: str) -> None:
    assert not is_secret_key(key)


@pytest.mark.parametrize(
    "key", ["hub_token", "api-key", "wandb_api_key", "password", "AWS_SECRET_ACCESS_KEY", "token", "secret"]
)
def test_secret_keys(key: str) -> None:
    assert is_secret_key(key)


def test_a_usual_run_is_left_as_it_is(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("HOME_KEY", "/root/.ssh/id"), ("SHORT_TOKEN", "abc"), ("A_KEY", "12345678901234")):
        monkeypatch.setenv(name, value)
    changed = [name for name, text in contents(trained).items() if redacted(text) != text and "checkpoints" not in name]
    assert changed == []
    assert not [name for name, text in contents(trained).items() if re.search(r"\*\*\*", text)]
