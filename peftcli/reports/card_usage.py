"""How to use an adapter, as its card says it: by peftcli, by Hugging Face PEFT, by transformers, by a server.

A card beside its run names the folder; a card in a repository names the repository, and how the run is reproduced from it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from peftcli.reports.record import RunRecord

_FOLDER = "ADAPTER_FOLDER"
_BASE_FOLDER = "BASE_FOLDER"


@dataclass(frozen=True)
class CardPlace:
    """A repository on the Hub that the card lies in."""

    repository: str
    """`owner/name`."""
    revision: str | None = None
    """A branch or tag other than `main`."""

    @property
    def folder(self) -> str:
        """Where the commands of the card download it to."""
        return self.repository.rsplit("/", 1)[-1]

    @property
    def adapter(self) -> str:
        """What a tool is given: the repository, or the download where a tool's own call takes no revision."""
        return self.repository if self.revision is None else f"./{self.folder}"

    def download(self) -> str:
        """The command that fetches it."""
        revision = "" if self.revision is None else f" --revision {self.revision}"
        return f"hf download {self.repository}{revision} --local-dir {self.folder}"


def usage(
    base: str | None,
    *,
    place: CardPlace | None,
    auto_class: str | None,
    served_as_lora: bool,
    comes_along: bool = False,
) -> str:
    """The section "Use". `base`: on the Hub, None where it is elsewhere; `auto_class`: None where Hugging Face PEFT does
    not have the method; `comes_along`: peftcli itself has the base."""
    parts = ["## Use", _own_tool(place, named=base is not None or comes_along)]
    adapter = _FOLDER if place is None else place.adapter
    if base is None and place is None:
        return "\n\n".join(parts)
    if base is None:
        parts.append(f"`{_BASE_FOLDER}` is your copy of the base, which is not on the Hub.")
    model = base or _BASE_FOLDER
    if auto_class is not None:
        parts += [_peft(model, adapter, auto_class), _transformers(model, adapter, auto_class)]
    if served_as_lora:
        parts.append(_vllm(model, adapter))
    elif place is not None:
        parts.append(_merged(place))
    return "\n\n".join(parts)


def _own_tool(place: CardPlace | None, *, named: bool) -> str:
    if place is None:
        return f'```sh\npeft generate {_FOLDER} --prompt "..." --base\n```'
    # the folder that the adapter names is one of another machine
    model = "" if named else f" --model {_BASE_FOLDER}"
    return f'```sh\n{place.download()}\npeft generate ./{place.folder} --prompt "..." --base{model}\n```'


def _peft(base: str, adapter: str, auto_class: str) -> str:
    return (
        f"```python\nfrom peft import PeftModel\nfrom transformers import {auto_class}\n\n"
        f"base = {auto_class}.from_pretrained({json.dumps(base)})\n"
        f"model = PeftModel.from_pretrained(base, {json.dumps(adapter)})\n```"
    )


def _transformers(base: str, adapter: str, auto_class: str) -> str:
    return (
        "or, with the package peft installed, by transformers alone:\n\n"
        f"```python\nfrom transformers import {auto_class}\n\n"
        f"model = {auto_class}.from_pretrained({json.dumps(base)})\n"
        f"model.load_adapter({json.dumps(adapter)})\n```"
    )


def _vllm(base: str, adapter: str) -> str:
    return (
        f"```sh\nvllm serve {base} --enable-lora --lora-modules tuned={adapter}\n```\n\n"
        "Ask for the model `tuned`: under the base's own name the base answers."
    )


def _merged(place: CardPlace) -> str:
    return (
        "Servers of LoRA files do not take this method's. Where it can be merged, they serve the whole model:\n\n"
        f"```sh\npeft merge ./{place.folder} --output merged\nvllm serve ./merged\n```"
    )


def reproduction(place: CardPlace, record: RunRecord) -> str:
    """The section that says how the run is repeated from the repository."""
    return (
        "## Reproduce\n\n"
        f"```sh\n{place.download()}\npeft reproduce ./{place.folder}/recipe.yaml\n```\n\n"
        "The lock beside the recipe pins base, data, tokenizer, seeds and packages, and holds the results to compare with. "
        f"Files that the recipe names under `inputs/` are not in this repository. Seed {record.seed}."
    )
