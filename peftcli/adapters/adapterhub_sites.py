"""Where AdapterHub's library hangs what it adds to a model, read from the model's structure.

    adapter layers    on the module that holds the sublayer's last linear layer and a norm (BERT, T5), else on the block
    LoRA, (IA)^3      on the projections of attention by their role (q, k, v), and on two of the feed-forward part
    prefixes          in one pool at the bare model

It knows the model families of `FAMILIES` and no others.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from peftcli.errors import AdapterError
from peftcli.models.structure import is_norm, structure
from peftcli.models.sublayers import Role, Sublayer, sublayers

VERSION = "1.3.0"
"""Of the library that this describes."""
FAMILIES = frozenset(
    {
        "albert", "bart", "beit", "bert", "bert-generation", "clip", "deberta", "deberta-v2", "distilbert", "electra",
        "gpt2", "gptj", "llama", "mbart", "mistral", "mt5", "plbart", "roberta", "t5", "vit", "xlm-roberta", "xmod",
    }
)  # fmt: skip
"""Model types that the library has classes for."""
_BLOCK_NAMES: dict[Role, str] = {"attention": "attention_adapters", "feed_forward": "output_adapters"}
_ATTENTION = "selfattn"
_INTERMEDIATE, _OUTPUT = "intermediate", "output"
_LINEARS: dict[str, tuple[str, str]] = {
    "self_attn.q_proj": (_ATTENTION, "q"),
    "self_attn.k_proj": (_ATTENTION, "k"),
    "self_attn.v_proj": (_ATTENTION, "v"),
    # the library calls the projection out of the feed-forward part its intermediate one, and leaves the gate alone
    "mlp.down_proj": (_INTERMEDIATE, ""),
    "mlp.up_proj": (_OUTPUT, ""),
    "attention.self.query": (_ATTENTION, "q"),
    "attention.self.key": (_ATTENTION, "k"),
    "attention.self.value": (_ATTENTION, "v"),
    "intermediate.dense": (_INTERMEDIATE, ""),
    "output.dense": (_OUTPUT, ""),
    "attention.q_lin": (_ATTENTION, "q"),
    "attention.k_lin": (_ATTENTION, "k"),
    "attention.v_lin": (_ATTENTION, "v"),
    "ffn.lin1": (_INTERMEDIATE, ""),
    "ffn.lin2": (_OUTPUT, ""),
}
"""Path within a block -> the place in the library's configuration, and its matrix of attention."""


def sublayer_places(model: nn.Module) -> dict[str, str]:
    """Path of each sublayer's last linear layer -> the module that the library hangs its adapter on."""
    return {site.output_path: _place(model, site) for site in sublayers(model)}


def _place(model: nn.Module, site: Sublayer) -> str:
    path = site.output_path.rpartition(".")[0]
    while path != site.block_path and path:
        if any(is_norm(child) for child in model.get_submodule(path).children()):
            return path
        path = path.rpartition(".")[0]
    return f"{site.block_path}.{_BLOCK_NAMES[site.role]}"


@dataclass(frozen=True)
class LinearSite:
    """One linear layer that LoRA or (IA)^3 can be put on there."""

    path: str
    block: int
    location: str
    matrix: str
    """`q`, `k` or `v` of attention, else empty."""


def linear_sites(model: nn.Module) -> dict[str, LinearSite]:
    """Every such layer by its path."""
    found = {}
    for number, (block_path, block) in enumerate(structure(model).blocks.items()):
        for name, (location, matrix) in _LINEARS.items():
            if _has(block, name):
                found[f"{block_path}.{name}"] = LinearSite(f"{block_path}.{name}", number, location, matrix)
    return found


def _has(block: nn.Module, name: str) -> bool:
    try:
        block.get_submodule(name)
    except AttributeError:
        return False
    return True


def linear_fields(model: nn.Module, paths: set[str], where: str) -> tuple[dict[str, object], list[LinearSite]]:
    """The configuration that covers some linear layers, and every layer that it covers beside them.

    Raises `AdapterError` for a layer that the library cannot put anything on.
    """
    sites = linear_sites(model)
    beyond = sorted({path.rpartition(".")[2] for path in paths - set(sites)})
    if beyond:
        can = sorted({path.rpartition(".")[2] for path in sites})
        raise AdapterError(
            f"AdapterHub's library puts nothing on {', '.join(beyond)} of this model",
            where=where,
            fix=f"train with target_modules among {', '.join(can)}" if can else "`peft export --to peft`",
        )
    chosen = [sites[path] for path in paths]
    locations = {site.location for site in chosen}
    matrices = sorted({site.matrix for site in chosen if site.matrix}, key="qkv".index)
    blocks = {site.block for site in chosen}
    fields: dict[str, object] = {
        "selfattn_lora": _ATTENTION in locations,
        "intermediate_lora": _INTERMEDIATE in locations,
        "output_lora": _OUTPUT in locations,
        "attn_matrices": matrices,
        "leave_out": [number for number in range(len(structure(model).blocks)) if number not in blocks],
    }
    covered = [
        site
        for site in sites.values()
        if site.block in blocks and site.location in locations and (not site.matrix or site.matrix in matrices)
    ]
    return fields, covered
