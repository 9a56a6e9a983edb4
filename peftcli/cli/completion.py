"""What the shell may complete beyond commands, options and files: starters, methods, recipe keys."""

from __future__ import annotations


def starters(incomplete: str) -> list[tuple[str, str]]:
    """Starters that begin so, each with its sentence."""
    from peftcli.cli.starters import starter_summaries

    return [(name, summary) for name, summary in starter_summaries().items() if name.startswith(incomplete)]


def methods(incomplete: str) -> list[str]:
    """Methods and short names that begin so."""
    from peftcli.adapters.registry import method_names, short_names

    return [name for name in (*method_names(), *short_names()) if name.startswith(incomplete)]


def topics(incomplete: str) -> list[str]:
    """Recipe keys that begin so."""
    from peftcli.recipe.keys import method_keys, recipe_keys

    names = dict.fromkeys(key.name for key in (*recipe_keys(), *method_keys()))
    return [name for name in names if name.startswith(incomplete)]
