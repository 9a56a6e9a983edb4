"""OFT (arXiv:2306.07280), input-centric (OFTv2, arXiv:2506.19847, eq. 3).

    y = W (R^T x) + b        R block-diagonal, its blocks R_i (b, b) from a skew matrix Q_i

    exact     R_i = (I - Q_i) (I + Q_i)^-1                          (Cayley)
    series    R_i = I + 2 Q_i + 2 Q_i^2 + ... + Q_i^(terms - 1)     (Cayley-Neumann, the last power counted once)

Shapes: the trained tensor holds the upper triangles of the Q_i, (blocks, b (b - 1) / 2), one row with `block_share`.
With `coft`, ||Q_i|| stays below eps / sqrt(rows). Merged: W' = W blockdiag(R)^T.

Key: `P.oft_R.weight`. Compared with peft 0.21.2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from peftcli.adapters.base import FILE_PREFIX, InitContext, Shapes
from peftcli.adapters.layers import AdapterLayer, unwrapped
from peftcli.adapters.linears import Biases, LinearsAdapter, LinearsMethod
from peftcli.adapters.methods.oft.config import OftConfig
from peftcli.errors import Fault
from peftcli.models.weights import weight_view


def nearest_divisor(size: int, wanted: int) -> int:
    """The divisor of `size` nearest to `wanted`; of two equally near, the smaller."""
    divisors = [number for number in range(1, size + 1) if size % number == 0]
    return min(divisors, key=lambda number: (abs(number - wanted), number))


def block_size(in_features: int, config: OftConfig) -> int:
    """Size of the blocks of a layer."""
    if config.r:
        return in_features // nearest_divisor(in_features, config.r)
    return nearest_divisor(in_features, config.oft_block_size)


class OftLayer(AdapterLayer):
    """The rotation of one linear layer's input."""

    def __init__(self, base_layer: nn.Module, config: OftConfig) -> None:
        super().__init__(base_layer)
        view = weight_view(unwrapped(base_layer))
        self.config = config
        self.size = block_size(view.shape[1], config)
        self.blocks = view.shape[1] // self.size
        rows = 1 if config.block_share else self.blocks
        self.oft_R = nn.Parameter(torch.empty(rows, self.size * (self.size - 1) // 2, device=view.device))

    def adapted(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """W (R^T x) + b, (..., out_features)."""
        if self.config.coft and self.training and torch.is_grad_enabled():
            self._project()
        parts = x.to(self.oft_R.dtype).unflatten(-1, (self.blocks, self.size))  # (..., blocks, b)
        rotation = self._dropped(self.rotation())
        if self.config.block_share and rotation.shape[0] == 1:
            rotated = parts @ rotation[0]
        else:
            # one product a block over all tokens
            rows = parts.flatten(0, -3).transpose(0, 1)  # (blocks, tokens, b)
            rotated = torch.bmm(rows, rotation).transpose(0, 1).reshape(parts.shape)
        return self.base_layer(rotated.flatten(-2).to(x.dtype), *args, **kwargs)  # type: ignore[no-any-return]

    def rotation(self) -> Tensor:
        """R_i, (blocks or 1, b, b) float32."""
        skew = self._skew(self._bounded(self.oft_R))
        identity = torch.eye(self.size, device=skew.device, dtype=skew.dtype)
        if not self.config.use_cayley_neumann:
            # I + Q is never singular; `solve` would look whether it was, and the host wait for the device at each layer
            rotation: Tensor = torch.linalg.solve_ex(identity + skew, identity - skew, left=False).result
            return rotation
        return _series(skew, identity, self.config.num_cayley_neumann_terms)

    def _skew(self, triangles: Tensor) -> Tensor:
        rows, columns = torch.triu_indices(self.size, self.size, 1, device=triangles.device)
        upper = triangles.new_zeros(triangles.shape[0], self.size, self.size)
        # `index_put` and no assignment in place: gradients go through it
        upper = upper.index_put((torch.arange(len(triangles), device=rows.device)[:, None], rows, columns), triangles)
        return upper - upper.transpose(1, 2)

    def _dropped(self, rotation: Tensor) -> Tensor:
        chance = self.config.module_dropout
        if not self.training or chance == 0:
            return rotation
        identity = torch.eye(self.size, device=rotation.device, dtype=rotation.dtype)
        kept = torch.rand(self.blocks, 1, 1, device=rotation.device) >= chance
        return torch.where(kept, rotation, identity)

    # -- constrained rotations -------------------------------------------------------------------------------------

    def _limit(self) -> float:
        """Largest norm of a row: ||Q||_F is sqrt(2) times the norm of its upper triangle."""
        return self.config.eps / math.sqrt(self.oft_R.shape[0]) / math.sqrt(2.0)

    def _bounded(self, triangles: Tensor) -> Tensor:
        if not self.config.coft:
            return triangles
        norms = torch.linalg.vector_norm(triangles.detach(), dim=1, keepdim=True)
        # away from zero, where the start lies
        bounded: Tensor = triangles * (self._limit() / norms.clamp_min(1e-30)).clamp_max(1.0)
        return bounded

    @torch.no_grad()
    def _project(self) -> None:
        # the optimizer's step is undone beyond the bound; nothing is written while all is within, so that a
        # recomputed forward leaves the tensor alone
        if bool((torch.linalg.vector_norm(self.oft_R, dim=1) > self._limit() * (1 + 1e-6)).any()):
            self.oft_R.copy_(self._bounded(self.oft_R))

    def tensors(self) -> dict[str, Tensor]:
        return {"oft_R.weight": self.oft_R}

    @torch.no_grad()
    def initialise(self, context: InitContext) -> None:
        """Q zero, so that R is the identity; `init_weights: false`: normal, deviation 0.1."""
        if self.config.init_weights:
            self.oft_R.zero_()
        else:
            self.oft_R.copy_(torch.empty(self.oft_R.shape).normal_(0.0, 0.1, generator=context.generator))

    @torch.no_grad()
    def merged(self) -> dict[str, Tensor]:
        """W blockdiag(R)^T."""
        view = weight_view(unwrapped(self.base_layer))
        parts = view.dense().unflatten(-1, (self.blocks, self.size))  # (out, blocks, b)
        rotation = self.rotation().float().expand(self.blocks, -1, -1)
        rotated = torch.einsum("oib,icb->oic", parts, rotation)
        return {"weight": view.stored(rotated.flatten(1))}


def _series(skew: Tensor, identity: Tensor, terms: int) -> Tensor:
    """I + 2 Q + ... + 2 Q^(n-2) + Q^(n-1) for n terms; with one term I, with two I + 2 Q, three count as four."""
    rotation = identity.expand_as(skew)
    if terms > 1:
        rotation = rotation + 2.0 * skew
    if terms > 2:
        power = skew @ skew
        rotation = rotation + 2.0 * power
        # terms - 1: the last power is added once, below
        for _ in range(3, terms - 1):
            power = power @ skew
            rotation = rotation + 2.0 * power
        rotation = rotation + power @ skew
    return rotation


class OftAdapter(LinearsAdapter):
    """Says when it does not start as the base."""

    config: OftConfig

    def start_differs(self) -> str | None:
        return None if self.config.init_weights else "init_weights: false starts at random"


class Oft(LinearsMethod[OftConfig]):
    """Wraps each linear layer that is targeted."""

    config_class = OftConfig
    tensor_prefix = "oft_"

    def new_adapter(self, model: nn.Module, config: OftConfig) -> OftAdapter:
        return OftAdapter(model, config)

    def trained_biases(self, config: OftConfig) -> Biases:
        return "targets" if config.bias == "oft_only" else config.bias

    def faults(self, config: OftConfig, path: str, module: nn.Module, shapes: Shapes | None) -> list[Fault]:
        """Blocks of one, which cannot turn, or a file's tensor in another shape than the configuration gives it."""
        in_features = weight_view(module).shape[1]
        size = block_size(in_features, config)
        if shapes is None and size < 2:
            wanted = f"r: {config.r}" if config.r else f"oft_block_size: {config.oft_block_size}"
            return [Fault(f"`{path}` has {in_features} inputs, and {wanted} leaves blocks of one", fix="larger blocks")]
        found = None if shapes is None else shapes.get(f"{FILE_PREFIX}{path}.oft_R.weight")
        expected = (1 if config.block_share else in_features // size, size * (size - 1) // 2)
        if found is not None and found != expected:
            return [
                Fault(f"`{path}.oft_R.weight` has shape {list(found)}, the configuration makes it {list(expected)}")
            ]
        return []

    def layer(self, config: OftConfig, path: str, module: nn.Module, shapes: Shapes | None) -> AdapterLayer:
        return OftLayer(module, config)


METHOD = Oft()
