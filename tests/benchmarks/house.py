"""How the package is built, in numbers: `python tests/benchmarks/house.py [CHECKOUT]`.

Lengths of functions and files, comments, pairs of equal stretches of code, rooms and the arrows between them, imports
inside functions. A number is a hint where to look, never a limit.
"""

from __future__ import annotations

import ast
import io
import statistics
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

STRETCH = 6
"""Lines that must be equal, without names of white space and comments, to count as a pair."""
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def main(checkout: Path) -> None:
    """Prints one line a number."""
    package = checkout / "peftcli"
    sources = {path: path.read_text(encoding="utf-8") for path in sorted(package.rglob("*.py"))}
    trees = {path: ast.parse(text) for path, text in sources.items()}
    lengths = sorted(length for tree in trees.values() for length in _function_lengths(tree))
    lines = {path: len(text.splitlines()) for path, text in sources.items()}
    long_files = sorted((count, path) for path, count in lines.items() if count > 300)
    arrows = {(_room(path, package), target) for path, tree in trees.items() for target in _targets(tree, package)}
    arrows = {(room, target) for room, target in arrows if room != target}
    print(f"files                         {len(sources)}, {sum(lines.values()):,} lines")
    print(f"functions                     {len(lengths):,}")
    print(f"  median length               {statistics.median(lengths):.0f} lines")
    print(f"  95th percentile             {lengths[int(0.95 * len(lengths))]} lines")
    print(f"  longest                     {lengths[-1]} lines")
    print(f"files over 300 lines          {len(long_files)}")
    for count, path in reversed(long_files):
        print(f"  {path.relative_to(checkout)}  {count}")
    print(f"comments in 100 lines         {100 * sum(map(_comments, sources.values())) / sum(lines.values()):.1f}")
    print(f"pairs of equal stretches      {_pairs(sources)} (of {STRETCH} lines)")
    print(f"rooms, arrows between them    {len({_room(path, package) for path in sources})}, {len(arrows)}")
    print(f"imports inside functions      {sum(_inner_imports(tree) for tree in trees.values())}")


def _function_lengths(tree: ast.AST) -> Iterator[int]:
    """Lines of each function without its docstring."""
    for node in ast.walk(tree):
        if isinstance(node, FUNCTIONS):
            first = node.body[0]
            is_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            told = (first.end_lineno or first.lineno) - first.lineno + 1 if is_text else 0
            yield (node.end_lineno or node.lineno) - node.lineno + 1 - told


def _comments(text: str) -> int:
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return sum(1 for token in tokens if token.type == tokenize.COMMENT and "type: ignore" not in token.string)


def _pairs(sources: dict[Path, str]) -> int:
    """Pairs of places in different files that say the same for `STRETCH` lines; overlapping ones count once."""
    places: dict[tuple[str, ...], set[Path]] = defaultdict(set)
    for path, text in sources.items():
        lines = [line.strip() for line in text.splitlines()]
        kept = [
            line for line in lines if line and not line.startswith(("#", "from ", "import ", '"""')) and line != ")"
        ]
        for start in range(len(kept) - STRETCH + 1):
            places[tuple(kept[start : start + STRETCH])].add(path)
    return len({pair for found in places.values() for pair in combinations(sorted(found), 2)})


def _room(path: Path, package: Path) -> str:
    return path.relative_to(package).parts[0].removesuffix(".py")


def _targets(tree: ast.AST, package: Path) -> Iterator[str]:
    for node in ast.walk(tree):
        names = (
            [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            if isinstance(node, ast.ImportFrom) and node.module
            else [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else []
        )
        for name in names:
            parts = name.split(".")
            if parts[0] != "peftcli" or len(parts) < 2:
                continue
            if (package / parts[1]).is_dir() or (package / f"{parts[1]}.py").is_file():
                yield parts[1]


def _inner_imports(tree: ast.AST) -> int:
    inside = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, FUNCTIONS)
        for inner in ast.walk(node)
        if isinstance(inner, ast.Import | ast.ImportFrom)
    }
    return len(inside)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2])
