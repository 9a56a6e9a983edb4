"""The house holds: floors, no cycles, a torch-free start, no unsafe loading, no files whose name says nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from peftcli.adapters.prompt_config import PROMPT_FILE_DEFAULTS, PromptConfig
from peftcli.adapters.registry import config_class, own_method_names
from peftcli.adapters.sublayer_config import Placement, SublayerConfig
from peftcli.adapters.target_config import TargetedConfig
from peftcli.data.format import load_format
from peftcli.data.names import own_format_names
from peftcli.tasks.registry import task_names

PACKAGE = Path(__file__).parents[1] / "peftcli"

FLOORS = {
    room: floor
    for floor, rooms in enumerate(
        (
            # what standard streams and files are cleaned by
            ("visible",),
            ("errors", "redaction", "streams", "system"),
            # `launching`: processes are told apart and started before anything is loaded
            ("files", "bounded_process", "bounded_call", "launching"),
            # folders that appear whole, made of files
            ("folders",),
            # which existing files may be written over
            ("ownership",),
            ("yaml",),
            # what `yaml` reads back
            ("yaml_writing",),
            ("kernels", "data", "reports"),
            ("models",),
            ("adapters",),
            ("tasks",),
            ("evaluation",),
            ("training",),
            ("recipe",),
            ("planning",),
            ("lock",),
            # a run's parts, and `run`, the sentence made of them
            ("runs",),
            ("run",),
            ("jobs",),
            ("reproduce", "compare", "exporting", "migrating", "sharing"),
            ("cli", "testing"),
            ("__main__",),
        )
    )
    for room in rooms
}
"""A room imports from lower floors only: what stands here on one line does not know of each other."""
UNSAFE = {"pickle", "cPickle", "joblib", "dill", "marshal", "shelve"}


def _files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "builtin/make" not in str(path))


def _room(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def _imports(path: Path, *, top_level_only: bool = False) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    for node in nodes:
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _advice(room: str, target: str) -> str:
    return (
        f"`{room}` lies on floor {FLOORS[room]}, `{target}` on floor {FLOORS[target]}; move what is needed below both, "
        "or hand it in as an argument"
    )


def test_imports_run_downwards() -> None:
    wrong = []
    for path in _files():
        room = _room(path)
        if room == "__init__":
            continue
        for name in _imports(path):
            if not name.startswith("peftcli."):
                continue
            target = name.split(".")[1]
            if target in FLOORS and target != room and FLOORS[target] >= FLOORS[room]:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {name}: {_advice(room, target)}")
    assert not wrong, "\n".join(sorted(set(wrong)))


def test_every_room_has_a_floor() -> None:
    rooms = {_room(path) for path in _files()} - {"__init__"}
    assert rooms <= set(FLOORS), f"give these a floor, and say why: {sorted(rooms - set(FLOORS))}"


def test_there_are_no_import_cycles() -> None:
    modules = {".".join(("peftcli", *path.relative_to(PACKAGE).with_suffix("").parts)): path for path in _files()}
    modules = {name.removesuffix(".__init__"): path for name, path in modules.items()}
    graph = {
        name: {found for found in _imports(path, top_level_only=True) if found in modules and found != name}
        for name, path in modules.items()
    }
    state: dict[str, int] = {}

    def visit(name: str, chain: tuple[str, ...]) -> None:
        if state.get(name) == 2:
            return
        assert state.get(name) != 1, " -> ".join((*chain[chain.index(name) :], name))
        state[name] = 1
        for inner in sorted(graph[name]):
            visit(inner, (*chain, name))
        state[name] = 2

    for name in sorted(graph):
        visit(name, ())


def test_nothing_unpickles_or_evaluates() -> None:
    wrong = []
    for path in _files():
        if any(name.split(".")[0] in UNSAFE for name in _imports(path)):
            wrong.append(f"{path}: imports a pickle reader")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if (
                called in ("eval", "exec", "torch.load", "yaml.load", "np.load", "numpy.load")
                or "register_for_checkpointing" in called
            ):
                wrong.append(f"{path}:{node.lineno}: {called}")
    assert not wrong, "\n".join(wrong)


def test_the_reference_is_never_imported() -> None:
    """It is here for the tests: what reads and writes its format must not come to lean on it."""
    wrong = [path for path in _files() if any(name.split(".")[0] == "peft" for name in _imports(path))]
    assert not wrong, wrong


def test_names_say_something() -> None:
    empty = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "handler"}
    assert not [path for path in _files() if path.stem in empty]


OWNERS = ("adapters/methods", "data/formats", "tasks", "migrating/tools")
"""Where names of methods, formats and tasks are at home, and where other tools' words for them are."""
KINDS = ("format", "method", "peft_type", "task", "task_type")
"""What holds such a name: never compared with a word."""


def _names() -> set[str]:
    """Every name that shared code may not know; words that are also columns or values of shared fields left out."""
    methods = [config_class(name) for name in own_method_names()]
    found = {config.name for config in methods} | {short for config in methods for short in config.short_names}
    found |= {config.peft_type for config in methods} | set(task_names())
    formats = [load_format(name) for name in own_format_names()]
    found |= {each.name for each in formats} - {part for each in formats for part in each.parts}
    found |= {name.replace("-", "_") for name in found}
    # a function of torch has that name too
    return (found | _fields_of_one_method()) - set(get_args(Placement)) - {"embedding"}


def _fields_of_one_method() -> set[str]:
    """Names of two words that a single method has among its fields, and no base class shares."""
    every = [field for name in own_method_names() for field in config_class(name).model_fields]
    shared = {*TargetedConfig.model_fields, *SublayerConfig.model_fields, *PromptConfig.model_fields}
    return {field for field in every if "_" in field and every.count(field) == 1} - shared - {*PROMPT_FILE_DEFAULTS}


def _shared_files() -> list[Path]:
    return [path for path in _files() if not path.relative_to(PACKAGE).as_posix().startswith(OWNERS)]


def _leaks(tree: ast.AST, names: set[str], formats: set[str]) -> Iterator[tuple[int, str]]:
    # a name inside a longer text is advice to a person, who needs one
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in names:
            yield node.lineno, repr(node.value)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(IMPORTS):
            yield node.lineno, f"imports {node.module}"
        elif isinstance(node, (ast.Tuple, ast.List, ast.Set)):
            words = {part.value if isinstance(part, ast.Constant) else None for part in node.elts}
            if len(words) > 1 and words <= formats:
                yield node.lineno, f"a list of formats: {ast.unparse(node)}"
        elif isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            held = {getattr(side, "attr", getattr(side, "id", "")) for side in sides} & set(KINDS)
            if held and any(isinstance(side, ast.Constant) and isinstance(side.value, str) for side in sides):
                yield node.lineno, ast.unparse(node)


IMPORTS = ("peftcli.adapters.methods.", "peftcli.data.formats.")


def test_shared_code_knows_no_method_task_or_format_by_name() -> None:
    names, formats = _names(), set(own_format_names())
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line}: {text}"
        for path in _shared_files()
        for line, text in _leaks(ast.parse(path.read_text(encoding="utf-8")), names, formats)
    ]
    advice = "a fact of the method, task or format itself (MethodConfig, Task, Format), which shared code asks for"
    assert not wrong, "\n".join([*wrong, f"make it {advice}"])


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ('if config.name == "lora": pass', 1),
        ('KINDS = {"prefix_tuning": 1}', 1),
        ('x = record.task in ("causal-lm", "other")', 1),
        ('size = fields["oft_block_size"]', 1),
        ('y = source.format == "text"', 1),
        ('PLAIN = frozenset({"text", "segments"})', 1),
        ('raise ValueError("use lora here")', 0),
        ("from peftcli.adapters.methods.lora.config import LoraConfig", 1),
        ('z = row["text"]', 0),
        ('"""As lora does it."""', 0),
    ],
)
def test_a_leak_is_seen(code: str, count: int) -> None:
    assert len(list(_leaks(ast.parse(code), _names(), set(own_format_names())))) == count


TORCH_FREE = [
    ["--help"],
    ["validate", "--help"],
    ["train", "--help"],
    ["merge", "--help"],
    ["schema"],
    ["methods"],
    ["methods", "lora"],
    ["explain", "training.learning_rate"],
    ["init", "--list"],
]


@pytest.mark.parametrize("arguments", TORCH_FREE, ids=" ".join)
def test_the_start_is_torch_free(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom peftcli.cli.entry import run\n"
        f"code = run({arguments!r})\n"
        "heavy = [name for name in ('torch', 'transformers', 'datasets', 'numpy', 'pandas') if name in sys.modules]\n"
        "sys.stderr.write(repr((code, heavy)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.endswith("(0, [])"), done.stderr[-500:]


def _undocumented(body: list[ast.stmt], imported: set[str]) -> Iterator[tuple[int, str]]:
    """Public classes, and names that another file imports, without a docstring (of a constant: the text under it)."""
    for node, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            # a function that a class is handed (`Format.parse`, `Check.scan`, `Metric.value`) is described there
            is_public = node.name in imported or (isinstance(node, ast.ClassDef) and not node.name.startswith("_"))
            if is_public and ast.get_docstring(node) is None:
                yield node.lineno, node.name
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            text = following.value if isinstance(following, ast.Expr) else None
            said = isinstance(text, ast.Constant) and isinstance(text.value, str)
            if isinstance(target, ast.Name) and target.id in imported and not said:
                yield node.lineno, target.id


def test_what_others_import_is_described() -> None:
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in _files()}
    imported: dict[str, set[str]] = {}
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                imported.setdefault(node.module, set()).update(alias.name for alias in node.names)
    wrong = []
    for path, tree in trees.items():
        name = ".".join(("peftcli", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        if ast.get_docstring(tree) is None:
            wrong.append(f"{path.relative_to(PACKAGE)}: what the file holds")
        missing = _undocumented(tree.body, imported.get(name, set()))
        wrong += [f"{path.relative_to(PACKAGE)}:{line}: {what}" for line, what in missing]
    assert not wrong, "\n".join(["say what these are (what they return, shapes, units, errors):", *wrong])


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("LIMIT = 3", ["LIMIT"]),
        ('LIMIT: int = 3\n"""Of rows."""', []),
        ("def read(): pass", ["read"]),
        ("def own(): pass", []),
        ("class Anything: pass", ["Anything"]),
        ("class _Anything: pass", []),
    ],
)
def test_a_name_without_words_is_seen(code: str, names: list[str]) -> None:
    assert [name for _, name in _undocumented(ast.parse(code).body, {"LIMIT", "read"})] == names


LATE_ROOMS = {
    "cli": "a command imports what it runs: `--help` is quick",
    "tasks": "a task's facts are read where nothing is trained, without torch",
}
"""Rooms whose functions import what they need."""


def _unexplained_imports(text: str) -> Iterator[tuple[int, str]]:
    """Imports inside functions, of our own or of the standard library, without a reason in the line above.

    Other libraries are slow or optional: each is imported where it is used.
    """
    lines = text.splitlines()
    imports = (ast.Import, ast.ImportFrom)
    for function in ast.walk(ast.parse(text)):
        if not isinstance(function, ast.FunctionDef):
            continue
        found = sorted((node for node in ast.walk(function) if isinstance(node, imports)), key=lambda node: node.lineno)
        explained = 0
        for node in found:
            name = node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name
            # a reason stands for the lines of imports right below it
            reason = "#" in lines[node.lineno - 2] or explained == node.lineno - 1
            explained = node.end_lineno if reason else explained
            own = name.split(".")[0] == "peftcli" or name.split(".")[0] in sys.stdlib_module_names
            if own and not reason:
                yield node.lineno, name


def test_an_import_inside_a_function_has_a_reason() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line}: {name}"
        for path in _files()
        if _room(path) not in LATE_ROOMS
        for line, name in _unexplained_imports(path.read_text("utf-8"))
    ]
    assert not wrong, "\n".join(["import at the top, or say above why not:", *wrong])


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("def f():\n    import json", 1),
        ("def f():\n    # a circle\n    from peftcli.data import names\n    from peftcli.data import rows", 0),
        ("def f():\n    import pyarrow", 0),
        ("import json", 0),
    ],
)
def test_an_import_without_a_reason_is_seen(code: str, count: int) -> None:
    assert len(list(_unexplained_imports(code))) == count


def _stray_comments(text: str) -> Iterator[int]:
    """Lines of comments that explain no line: before a blank one, or between a function's head and its docstring."""
    lines = [line.strip() for line in text.splitlines()]
    heads: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
            heads.update(range(node.lineno, node.body[0].lineno))
    for number, (line, following) in enumerate(zip(lines, [*lines[1:], ""], strict=True), start=1):
        explains_none = not following or (number in heads and following.startswith('"""'))
        if explains_none and line.startswith("# ") and not line.startswith(("# --", "# fmt:")):
            yield number


def test_a_comment_stands_by_what_it_explains() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)}:{number}"
        for path in _files()
        for number in _stray_comments(path.read_text("utf-8"))
    ]
    assert not wrong, f"a comment is right above its line, below the docstring: {wrong}"


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("x = 1\n\n# a reason\n\n\ndef f(): pass", 1),
        ('def f():\n    # a reason\n    """Text."""', 1),
        ('def f():\n    """Text."""\n    # a reason\n    return 1', 0),
        ("# -- a part of the file ---\n\nx = 1", 0),
        ("def f(\n    # of the model\n    x,\n):\n    pass", 0),
    ],
)
def test_a_stray_comment_is_seen(code: str, count: int) -> None:
    assert len(list(_stray_comments(code))) == count


ADAPTED_ROOMS = ("adapters", "evaluation", "jobs", "planning", "runs", "lock")
OWN_WEIGHTS = {
    "adapters/prompts.py": {"self.embedding.weight"},
    "adapters/prompt_start.py": {"module.weight", "layer.weight"},
    "adapters/sublayer_adapters.py": {"norm.weight"},
    "adapters/methods/lora/former_experts.py": {"group.weight"},
    "adapters/methods/bottleneck/method.py": {"linear.weight"},
    "adapters/methods/prefix_tuning/method.py": {"self.embedding.weight"},
    "adapters/methods/p_tuning/method.py": {"self.embedding.weight"},
    "evaluation/generate.py": {"embedding.weight"},
    "runs/attaching.py": {"found.weight"},
    "planning/step_memory.py": {"found.weight"},
}
"""Attributes of that name which are an adapter's own tensors, asked of any wrapper, or the weight of a loss."""


def test_weights_of_the_base_are_read_through_the_view() -> None:
    """A packed weight is other bytes than the numbers that it stands for: whoever reads `.weight` is silently wrong."""
    wrong = []
    for room in ADAPTED_ROOMS:
        for path in sorted((PACKAGE / room).rglob("*.py")):
            name = path.relative_to(PACKAGE).as_posix()
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Attribute) and node.attr == "weight":
                    shown = ast.unparse(node)
                    if shown not in OWN_WEIGHTS.get(name, ()):
                        wrong.append(f"{name}:{node.lineno}: {shown}: use weight_view(module)")
    assert not wrong, "\n".join(wrong)
