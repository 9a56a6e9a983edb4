"""The jobs that `peft init --ci` writes: their commands, run as they stand; and this repository's own workflow."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import yaml

from peftcli.cli.entry import run as peft
from peftcli.cli.starters import CI_PATHS, write_ci_job

REPOSITORY = Path(__file__).parents[2]


def commands(service: str, text: str) -> list[str]:
    """Every command of a job that a push runs, in order."""
    document: dict[str, Any] = yaml.safe_load(text)
    if service == "gitlab":
        return list(document["recipes"]["script"])
    steps = document["jobs"]["recipes"]["steps"]
    return [step["run"] for step in steps if "run" in step and "== 'schedule'" not in step.get("if", "")]


def variables(service: str, text: str) -> dict[str, str]:
    document: dict[str, Any] = yaml.safe_load(text)
    if service == "gitlab":
        push = next(rule for rule in document["recipes"]["rules"] if "variables" in rule)
        return {**document["recipes"]["variables"], **push["variables"]}
    return dict(document["jobs"]["recipes"]["env"])


@pytest.mark.parametrize("service", ["github", pytest.param("gitlab", marks=pytest.mark.slow)])
def test_the_commands_of_a_generated_job_run_as_they_stand(service: str, work: Path) -> None:
    assert peft(["init", "--ci", service, "--quiet"]) == 0
    text = (work / CI_PATHS[service]).read_text(encoding="utf-8")
    given = variables(service, text)
    assert given["RECIPES"] == "tiny.yaml"
    bin_folder = Path(sys.executable).parent
    environment = {**os.environ, **given, "PATH": f"{bin_folder}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    found = commands(service, text)
    assert len(found) == 5
    printed = ""
    for command in found:
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", command],
            env=environment, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout[-1000:]}{done.stderr[-2000:]}"
        printed += done.stdout
    assert "tiny.yaml is valid" in printed
    assert "every stage passed" in printed
    assert "reproduced: bit for bit" in printed
    report = ElementTree.parse(work / "reports" / "tiny.xml").getroot()
    assert report.find("testsuite/testcase") is not None


def test_both_services_are_given_the_same_commands(work: Path) -> None:
    """What differs is where they keep the prefix of a pull request: in the command, or in a variable of the rule."""
    texts = {service: write_ci_job(service, None).read_text(encoding="utf-8") for service in CI_PATHS}
    github, gitlab = (commands(service, texts[service]) for service in ("github", "gitlab"))
    assert len(github) == 5
    given = variables("gitlab", texts["gitlab"])["STEPS"]
    assert [" ".join(command.split()) for command in github] == [
        " ".join(command.replace("$STEPS", given).split()) for command in gitlab
    ]
    nightly = next(rule for rule in yaml.safe_load(texts["gitlab"])["recipes"]["rules"] if "schedule" in rule["if"])
    assert "variables" not in nightly, "a schedule reproduces whole runs"


def test_a_job_fails_with_the_recipe_that_does_not_reproduce(work: Path) -> None:
    write_ci_job("github", None)
    text = (work / CI_PATHS["github"]).read_text(encoding="utf-8")
    (work / "tiny.yaml").write_text((work / "tiny.yaml").read_text().replace("2e-3", "4e-3"))
    bin_folder = Path(sys.executable).parent
    environment = {**os.environ, "RECIPES": "tiny.yaml", "PATH": f"{bin_folder}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-e", "-c", commands("github", text)[-1]],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 10
    assert "training.learning_rate" in done.stderr


def test_jobs_name_the_recipes_that_are_there(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "recipes").mkdir()
    (work / "tiny.yaml").rename(work / "recipes" / "one.yaml")
    (work / "compose.yaml").write_text("services: {}\n")
    (work / "rows.jsonl").rename(work / "recipes" / "rows.jsonl")
    text = write_ci_job("gitlab", Path("a.yml")).read_text(encoding="utf-8")
    assert variables("gitlab", text)["RECIPES"] == "recipes/one.yaml"
    assert peft(["init", "mine", "--ci", "gitlab", "--output", "b.yml"]) == 0
    assert variables("gitlab", (work / "b.yml").read_text())["RECIPES"] == "mine.yaml"
    (work / "recipes" / "one.yaml").unlink()
    text = write_ci_job("github", None).read_text(encoding="utf-8")
    assert variables("github", text)["RECIPES"] == "quickstart.yaml"


def test_a_job_is_never_overwritten_and_services_are_known(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert peft(["init", "--ci", "github"]) == 0
    assert peft(["init", "--ci", "github"]) == 6
    assert peft(["init", "--ci", "gitlub"]) == 2
    assert "--ci gitlab" in capsys.readouterr().err


def test_this_repository_checks_and_reproduces_itself() -> None:
    workflow: dict[str, Any] = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "ci.yml").read_text())
    ran = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert ran == ["make check", "make test-${{ matrix.releases }}", "make recipes", "make reproduce"]
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    for target in ("check", "test-newest", "test-oldest", "recipes", "reproduce"):
        assert f"\n{target}:" in makefile
    for command in ("peft validate", "peft plan", "peft train $$recipe --smoke", "peft reproduce"):
        assert command in makefile
