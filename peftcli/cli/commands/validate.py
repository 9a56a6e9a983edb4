"""peft validate"""

from __future__ import annotations

from peftcli.cli.output import AsJson, Quiet, RecipePath, Set, say, show


def command(
    recipe: RecipePath,
    overrides: Set = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Check a recipe: schema, cross-field rules, and whether its files, packages and device are here; all faults at
    once. Loads no model, reaches no network.

    Where the base's config.json is here, also whether the method works on such a model.

    Example:  peft validate quickstart.yaml --set method.r=16
    """
    from peftcli.errors import all_at_once
    from peftcli.recipe import check_chat_template, check_pairing, load_recipe
    from peftcli.recipe.surroundings import require_surroundings

    loaded = load_recipe(recipe, overrides or (), fetch=False)
    # a pair that cannot be comes first: installing what is missing would not help it
    all_at_once(f"{recipe} cannot run", (lambda: check_pairing(loaded), lambda: require_surroundings(loaded)))
    check_chat_template(loaded)
    for warning in loaded.warnings:
        say(f"warning: {warning}")
    facts = {"valid": True, "recipe": str(recipe), "name": loaded.name, "method": loaded.recipe.method.name}
    show({**facts, "warnings": list(loaded.warnings)}, f"{recipe} is valid", as_json=as_json)
