"""Recipes that somebody else wrote."""

# ruff: noqa: E501 - a table reads best with an entry a line

from __future__ import annotations

import os
from collections.abc import Callable

from hostile_case import GOOD, Case, Scene

VALIDATE = "validate r.yaml"
PLAN = "plan r.yaml"
REFUSED = frozenset({2, 3, 4, 6})


def text(content: str | bytes) -> Callable[[Scene], object]:
    return lambda scene: scene.write("r.yaml", content)


def line(content: str) -> Callable[[Scene], object]:
    return text(GOOD + content + "\n")


def bomb() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 20)]
    return "\n".join(lines) + "\n"


def linked(scene: Scene) -> None:
    (scene.folder / "r.yaml").symlink_to(scene.outside)


def pipe(scene: Scene) -> None:
    os.mkfifo(scene.folder / "r.yaml")


def extends(target: str) -> Callable[[Scene], object]:
    return lambda scene: scene.write("r.yaml", GOOD + f"extends: {target.replace('OUTSIDE', str(scene.outside))}\n")


def chain(scene: Scene) -> None:
    for number in range(40):
        scene.write(f"r{number}.yaml", f"extends: r{number + 1}.yaml\n")
    scene.write("r.yaml", GOOD + "extends: r0.yaml\n")


def targets(pattern: str) -> Callable[[Scene], object]:
    return text(GOOD.replace("[q_proj, v_proj]", f"'{pattern}'"))


def case(
    name: str, prepare: Callable[[Scene], object], *says: str, codes: frozenset[int] = REFUSED, command: str = VALIDATE
) -> Case:
    return Case(f"recipe: {name}", "recipe", prepare, codes, says, command)


BENIGN = Case("recipe", "recipe", text(GOOD), frozenset({0}), (), PLAN)

RECIPES = [
    case("alias bomb", text(bomb()), "anchors and aliases"),
    case("merge keys", text("a: &a {b: 1}\n<<: *a\n"), "anchors and aliases"),
    case("a tag that runs code", line("name: !!python/object/apply:os.system ['touch CANARY']"), "tags"),
    case("a tag that names a module", line("name: !!python/module:evil_module"), "tags"),
    case("_target_", line("_target_: os.system"), "names code"),
    case("a class to import", line("training: {optimizer: evil_module.Evil}"), "training"),
    case("a method to import", text(GOOD.replace("type: lora", "type: evil_module:Evil")), "unknown method"),
    case("a metric to import", line("evaluation: {metrics: ['evil_module:Evil']}"), "evaluation"),
    case("remote code", line("trust_remote_code: true"), "trust-remote-code"),
    case("deep lists", line("data: " + "[" * 100_000), "levels deep"),
    case("deep sections", line("data: " + "{a: " * 100_000), "levels deep"),
    case("deep blocks", text("".join(" " * n + "a:\n" for n in range(1000))), "levels deep"),
    case("10 MB", line("# " + "x" * (10 << 20)), "larger than"),
    case("many keys", text("".join(f"k{n}: 1\n" for n in range(60_000))), "r.yaml"),
    case("a key of 500 kB", text("k" * 500_000 + ": 1\n" + GOOD), "r.yaml"),
    case("many digits", line("seed: " + "9" * 500_000), "seed"),
    case("NUL", line("name: \"a\\0b\""), "name"),
    case("names up", line("name: ../../../x"), "`name`"),
    case("a name of a device", line("name: CON"), "`name`"),
    case("a name from right to left", line('name: "a\\u202eb"'), "`name`"),
    case("escape codes", line('name: "\\e[31m\\e]8;;http://x\\a"'), "`name`"),
    case("escape codes in a key", text('"\\e[31mred": 1\n' + GOOD), "unknown key"),
    case("variables", line("name: ${oc.env:HOME}"), "no variables"),
    case("a binary file", text(os.urandom(100_000)), "r.yaml"),
    case("a link to a pipe", linked, "not a regular file"),
    case("a pipe", pipe, "not a regular file"),
    case("extends a pipe", extends("OUTSIDE"), "not a regular file"),
    case("extends a device", extends("/dev/zero"), "not a regular file"),
    case("extends a URL", extends("http://example.com/x.yaml"), "path of a recipe"),
    case("extends without end", chain, "extend one another"),
    case("template is a device", text(GOOD.replace("model: builtin:tiny", "model: {base: builtin:tiny, chat_template: /dev/zero}")), "chat template", command=PLAN),
    case("template is a pipe", lambda scene: scene.write("r.yaml", GOOD.replace("model: builtin:tiny", f"model: {{base: builtin:tiny, chat_template: {scene.outside}}}")), "chat template", command=PLAN),
    case("pattern: exponential", targets("(([a-z_]+)+[.0-9]*)+X"), "target_modules", command=PLAN),
    case("pattern: stars", targets(".*" * 30 + "X"), "target_modules", command=PLAN),
    case("base leads up", text(GOOD.replace("builtin:tiny", "../outside")), "not a model folder", command=PLAN),
    case("builtin leads up", text(GOOD.replace("builtin:tiny", "builtin:../../../../etc")), "builtin", command=PLAN),
    case("built-in data lead up", text(GOOD.replace("builtin:support", "builtin:../../../../etc/passwd")), "built-in data", command=PLAN),
    case("built-in part leads up", text(GOOD.replace("builtin:support", "builtin:support/../../../x")), "part", command=PLAN),
]  # fmt: skip
