"""Shapes of credentials, planted wherever a user may have them: none reaches a file, a message or a log."""

from __future__ import annotations

import json
import random
import re
import string
from pathlib import Path
from typing import Any

import pytest
from hostile_case import GOOD as SHORT

from peftcli.cli import entry
from peftcli.cli.entry import run as peft
from peftcli.data.doctor.base import RowBatch, load_check
from peftcli.data.rows import TextRow
from peftcli.redaction import MASK, holds_secret, is_secret_key, redacted, redacted_keys, redacted_name, redacted_values
from peftcli.redaction.shapes import SHAPES
from peftcli.redaction.surroundings import secret_values
from peftcli.reports.record import RunRecord, Sample

GOOD = SHORT.replace("max_length: 160", "max_length: 400")
LETTERS, DIGITS, HEX = string.ascii_letters, string.digits, "0123456789abcdef"


def made(length: int, alphabet: str = LETTERS + DIGITS) -> str:
    """Random, so that nothing here is anybody's."""
    return "".join(random.Random(f"{length}{alphabet}").choices(alphabet, k=length))


UPPER = string.ascii_uppercase + DIGITS
BY_SHAPE = {
    "Hugging Face": "hf_" + made(34, LETTERS),
    "Hugging Face organisation": "api_org_" + made(34, LETTERS),
    "OpenAI": "sk-" + made(20) + "T3BlbkFJ" + made(20),
    "OpenAI project": "sk-proj-" + made(48),
    "OpenAI service account": "sk-svcacct-" + made(58, LETTERS + DIGITS + "-_"),
    "Anthropic": "sk-ant-api03-" + made(93, LETTERS + DIGITS + "-_") + "AA",
    "OpenRouter": "sk-or-v1-" + made(64, HEX),
    "Groq": "gsk_" + made(52),
    "xAI": "xai-" + made(80),
    "NVIDIA": "nvapi-" + made(64),
    "Perplexity": "pplx-" + made(48),
    "Replicate": "r8_" + made(37),
    "LangSmith": "lsv2_pt_" + made(32, HEX) + "_" + made(10, HEX),
    "Databricks": "dapi" + made(32, HEX),
    "AWS": "AKIA" + made(16, UPPER),
    "AWS session": "ASIA" + made(16, UPPER),
    "Google": "AIza" + made(35),
    "Google OAuth": "GOCSPX-" + made(28),
    "Google access": "ya29." + made(60, LETTERS + DIGITS + "-_"),
    "Azure client": made(3) + "8Q~" + made(34),
    "DigitalOcean": "dop_v1_" + made(64, HEX),
    "DigitalOcean OAuth": "doo_v1_" + made(64, HEX),
    "Alibaba": "LTAI" + made(20),
    "Heroku": "HRKU-AA" + made(58),
    "PlanetScale": "pscale_tkn_" + made(43),
    "Terraform": made(14) + ".atlasv1." + made(67),
    "Pulumi": "pul-" + made(40, HEX),
    "GitHub": "ghp_" + made(36),
    "GitHub OAuth": "gho_" + made(36),
    "GitHub app": "ghs_" + made(36),
    "GitHub fine-grained": "github_pat_" + made(22) + "_" + made(59),
    "GitLab": "glpat-" + made(20),
    "GitLab runner": "glrt-" + made(20),
    "Atlassian": "ATATT3" + made(186, LETTERS + DIGITS + "-_="),
    "npm": "npm_" + made(36),
    "PyPI": "pypi-AgEIcHlwaS5vcmc" + made(100, LETTERS + DIGITS + "-_"),
    "RubyGems": "rubygems_" + made(48, HEX),
    "Docker": "dckr_pat_" + made(27),
    "Slack bot": "xoxb-" + made(12, DIGITS) + "-" + made(24),
    "Slack user": "xoxp-" + "-".join([made(11, DIGITS), made(12, DIGITS), made(13, DIGITS), made(32, HEX)]),
    "Slack app": "xapp-1-" + made(11, UPPER) + "-" + made(13, DIGITS) + "-" + made(64, HEX),
    "Telegram": made(10, DIGITS) + ":AA" + made(33),
    "Twilio": "SK" + made(32, HEX),
    "SendGrid": "SG." + made(22) + "." + made(43),
    "Mailgun": "key-" + made(32, HEX),
    "Mailchimp": made(32, HEX) + "-us12",
    "Discord": "MTk4" + made(20) + "." + made(6) + "." + made(38),
    "Stripe": "sk_live_" + made(24),
    "Stripe restricted": "rk_test_" + made(24),
    "Stripe webhook": "whsec_" + made(32),
    "Shopify": "shpat_" + made(32, HEX),
    "Square": "sq0atp-" + made(22),
    "Square OAuth": "sq0csp-" + made(43),
    "Linear": "lin_api_" + made(40),
    "Notion": "ntn_" + made(11, DIGITS) + made(35),
    "Airtable": "pat" + made(14) + "." + made(64, HEX),
    "Figma": "figd_" + made(40),
    "Grafana": "glsa_" + made(32) + "_" + made(8, HEX),
    "New Relic": "NRAK-" + made(27, UPPER),
    "Postman": "PMAK-" + made(24, HEX) + "-" + made(34, HEX),
    "Doppler": "dp.pt." + made(43),
    "Vault": "hvs." + made(95, LETTERS + DIGITS + "-_"),
    "JSON web token": "eyJ" + made(20) + ".eyJ" + made(30) + "." + made(43),
}
IN_CONTEXT = {
    "Slack webhook": (
        "https://hooks.slack.com/",
        "services/T" + made(9, UPPER) + "/B" + made(9, UPPER) + "/" + made(24),
    ),
    "Discord webhook": ("https://discord.com/api/webhooks/", made(18, DIGITS) + "/" + made(68)),
    "Azure storage": ("DefaultEndpointsProtocol=https;AccountName=x;AccountKey=", made(86) + "=="),
    "private key": (
        "",
        "-----BEGIN RSA PRIVATE KEY-----\n" + made(64) + "\n" + made(64) + "\n-----END RSA PRIVATE KEY-----",
    ),
    "PGP key": ("", "-----BEGIN PGP PRIVATE KEY BLOCK-----\n\n" + made(64) + "\n-----END PGP PRIVATE KEY BLOCK-----"),
    "password in an address": ("postgres://", "me:" + made(15) + "@db.example.org/x"),
    "password without a user": ("redis://", ":" + made(15) + "@localhost:6379"),
    "bearer": ("Authorization: Bearer ", made(40)),
    "basic": ("curl -H 'Authorization: Basic ", made(24) + "'"),
    "camel case": ('{"accessToken": "', made(40, HEX) + '"}'),
}
"""What is masked, where it stands behind something that says what it is."""
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


def test_there_are_more_than_sixty() -> None:
    assert len(set(SECRETS.values())) >= 60


@pytest.mark.parametrize("name", BY_SHAPE)
@pytest.mark.parametrize("around", ["{}", "key: {}.", "<b>{}</b>", "a\\n{}\\nb", "?x=%3D{}&y", "({})", "/srv/{}/data"])
def test_every_shape_is_known_wherever_it_stands(name: str, around: str) -> None:
    text = around.format(BY_SHAPE[name])
    assert BY_SHAPE[name][8:] not in redacted(text), redacted(text)
    assert BY_SHAPE[name][8:] not in redacted_name(text)
    assert holds_secret(text)


@pytest.mark.parametrize("name", IN_CONTEXT)
def test_what_stands_behind_a_sign_is_masked(name: str) -> None:
    sign, secret = IN_CONTEXT[name]
    found = redacted(f"before {sign}{secret} after")
    assert secret[:12] not in found.replace("-----BEGIN", ""), found
    assert found.startswith(f"before {sign}"[:30])
    assert found.endswith(" after")


def test_the_doctor_has_the_same_list() -> None:
    rows = [TextRow(f"my {name} is {secret}, keep it") for name, secret in BY_SHAPE.items()]
    rows += [TextRow(text) for text in INNOCENT]
    hits = dict(load_check("secrets").scan(RowBatch(rows)))
    assert list(hits) == list(range(len(BY_SHAPE)))
    assert all(message.startswith("the text holds a") for message in hits.values())
    assert {hits[list(BY_SHAPE).index(name)] for name in ("GitHub", "GitHub fine-grained")} == {
        "the text holds a GitHub token"
    }


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
    "sk-2024-how-to-write-a-very-long-slug-with-many-words-2 and desk-" + made(30),
    "pypi-publish-action-for-all-of-our-many-python-packages-v2",
    "the bearer responsibilities, basic understanding, Authorization: required",
    "sha512-" + made(86) + "== integrity; sha256:" + made(64, HEX),
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAEAAA" + made(80, LETTERS + DIGITS + "+/"),
    "commit " + made(40, HEX) + ", uuid 123e4567-e89b-12d3-a456-426614174000, key-value-store-of-32-chars",
    "AKIA is the prefix, AKIAIOSFODNN7 too short, ASIAN-PACIFIC-2024-REGIONS",
    "https://user@example.com/a:b and http://localhost:8080/x@y and git@github.com:o/r.git",
    "at 2024-01-01T12:30:45 12345678:A short one; secret_santa_list_of_everybody_in_the_office_this_year",
    "module.submodule_a.some_very_long_identifier_name, patience.0123456789abcdef, SKIPPED, ACCORDING",
    "model.layers.12.mlp.down_proj.lora_A.default.weight s.decode('utf-8') s.translate s.isalnum24",
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


@pytest.mark.slow
def test_the_texts_of_the_measuring_ground_hold_few(ground: Path) -> None:
    """Real rows and real code: what is found there was looked at; a shape that meets words would find hundreds."""
    texts = [path.read_text(errors="replace") for path in ground.rglob("*.jsonl") if path.stat().st_size < 4 << 20]
    texts += [path.read_text(errors="replace") for path in Path(entry.__file__).parents[1].rglob("*.py")]
    found = [shape.kind for text in texts for shape in SHAPES if shape.is_in(text)]
    assert sum(map(len, texts)) > 1 << 20
    assert len(found) <= 3, found


# -- words of the environment --------------------------------------------------------------------------------------

WORDS = {
    "SORT_KEY": "learning_rate",
    "PRIMARY_KEY": "adapter_sha256",
    "PARTITION_KEY": "trained_tokens",
    "CACHE_KEY": "builtin:support",
    "STATE_KEY": "interrupted",
    "GROUP_KEY": "model.layers.0.self_attn.q_proj",
    "MODEL_KEY": "HuggingFaceTB/SmolLM2-135M",
    "MONKEY": "target_modules",
    "API_KEY": "max_grad_norm",
    "RUN_TOKEN": "completions",
    "DB_PASSWORD": "micro_batch_size",
    "STEP_TOKEN": "0.0123456789",
    "RATE_SECRET": "1.5430806348e-05",
    "FORMAT_TOKEN": "prompt-completion",
}


def test_words_of_the_environment_leave_a_run_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.yaml").write_text(SHORT)
    monkeypatch.chdir(tmp_path)
    assert peft(["train", "r.yaml", "--output", "plain", "--quiet"]) == 0
    for name, value in WORDS.items():
        monkeypatch.setenv(name, value)
    assert peft(["train", "r.yaml", "--output", "keyed", "--quiet"]) == 0
    capsys.readouterr()
    one, other = (json.loads((tmp_path / run / "run.json").read_text()) for run in ("plain", "keyed"))
    moving = {
        "seconds",
        "started",
        "digest",
        "tokens_per_second",
        "peak_memory_bytes",
        "model_memory_bytes",
        "predicted",
    }
    # hashes of files with times in them
    moving |= {"run_files", "adapter_files"}
    assert {key for key in one if one[key] != other[key]} <= moving | {"data", "plan"}
    assert MASK not in (tmp_path / "keyed" / "run.json").read_text()
    assert MASK not in (tmp_path / "keyed" / "metrics.jsonl").read_text()
    assert [list(line) for line in events(tmp_path / "plain")] == [list(line) for line in events(tmp_path / "keyed")]
    locks = [(tmp_path / run / "recipe.lock").read_text() for run in ("plain", "keyed")]
    assert locks[0] == locks[1]
    assert peft(["lock", "keyed"]) == 0
    assert peft(["train", "r.yaml", "--output", "again", "--locked", "--quiet"]) == 0
    assert peft(["inspect", "keyed", "--json"]) == 0
    assert MASK not in capsys.readouterr().out


def events(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_which_variables_hold_secrets() -> None:
    assert list(secret_values(words=False, environment=WORDS)) == []
    drawn = {"SORT_KEY": made(24), "OPENAI_KEY": "sk-" + made(40), "WANDB_API_KEY": made(40, HEX), "X_PAT": made(20)}
    assert list(secret_values(words=False, environment=drawn)) == list(drawn.values())
    thought_up = {"DB_PASSWORD": "correct-horse-battery", "SMTP_PASS": "opensesame now"}
    assert list(secret_values(words=True, environment=thought_up)) == list(thought_up.values())
    assert list(secret_values(words=True, environment={"PWD": "some-folder-name", "SORT_KEY": "learning_rate"})) == []


def test_a_password_of_words_is_masked_in_free_text_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASSWORD", "correct-horse-battery")
    assert redacted("it is correct-horse-battery, psst") == "it is ***, psst"
    assert redacted_values({"correct-horse-battery": ["correct-horse-battery", 1, None]}) == {
        "correct-horse-battery": ["correct-horse-battery", 1, None]
    }
    record = RunRecord(
        status="completed", method="lora", task="correct-horse-battery", base="x", seed=1,
        warnings=["found correct-horse-battery"], samples=[Sample(prompt="correct-horse-battery?")],
        recipe={"data.train": "correct-horse-battery/x"},
    ).to_dict()  # fmt: skip
    assert record["warnings"] == ["found ***"]
    assert record["samples"][0]["prompt"] == "***?"
    assert (record["task"], record["recipe"]["data.train"]) == ("correct-horse-battery", "correct-horse-battery/x")


def test_keys_of_a_users_own_stay_apart() -> None:
    first, second = BY_SHAPE["GitHub"], BY_SHAPE["npm"]
    assert redacted_keys({first: 1, second: 2, "a": 3}) == {"***": 1, "*** (2)": 2, "a": 3}


def test_a_usual_run_is_left_as_it_is(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("HOME_KEY", "/root/.ssh/id"), ("SHORT_TOKEN", "abc"), ("A_KEY", "12345678901234")):
        monkeypatch.setenv(name, value)
    changed = [name for name, text in contents(trained).items() if redacted(text) != text and "checkpoints" not in name]
    assert changed == []
    assert not [name for name, text in contents(trained).items() if re.search(r"\*\*\*", text)]
