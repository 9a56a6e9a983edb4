"""Layers that are not what their type says: refused with the reason, or adapted so that forward and merge agree."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from peftcli import adapters
from peftcli.adapters.surgery import adapter_of
from peftcli.errors import AdapterError, AdapterWarning
from peftcli.models.direct_reads import read_directly
from peftcli.models.plain_linear import linear_fault, quantized_layers

WIDTH = 8
_DECODER: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def lora(*targets: str, **fields: Any) -> dict[str, Any]:
    return {"type": "lora", "r": 2, "init_lora_weights": False, "target_modules": list(targets), **fields}


def shaken(model: nn.Module, section: Any, seed: int = 0) -> nn.Module:
    """The method on the model, every trained number moved."""
    adapters.attach(model, section)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter_of(model).trainable_parameters().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def agree(model: nn.Module, section: Any, inputs: Sequence[Any], answer: Callable[[Any], Tensor] = lambda y: y) -> None:
    """Something changes, every tensor gets a gradient, and forward, no_grad forward, merge and disabled agree."""
    with torch.no_grad():
        plain = answer(model(*inputs))
    shaken(model, section)
    tuned = answer(model(*inputs))
    tuned.square().sum().backward()
    idle = [key for key, p in adapter_of(model).trainable_parameters().items() if p.grad is None or not p.grad.any()]
    assert not idle
    assert float((tuned.detach() - plain).abs().max()) > 1e-2
    with torch.no_grad():
        torch.testing.assert_close(answer(model(*inputs)), tuned.detach(), atol=1e-5, rtol=1e-5)
        with adapters.disabled(model):
            torch.testing.assert_close(answer(model(*inputs)), plain, atol=1e-6, rtol=1e-6)
        adapters.merge(model)
        torch.testing.assert_close(answer(model(*inputs)), tuned.detach(), atol=1e-4, rtol=1e-4)


def reason(model: nn.Module, section: Any) -> str:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(AdapterError) as caught:
        adapters.attach(model, section)
    assert before.keys() == model.state_dict().keys()
    assert len(str(caught.value).splitlines()) <= 5
    return str(caught.value)


# -- weights that the model reads itself ------------------------------------------------------------------------------


class Functional(nn.Module):
    """`b` is never called, `embed` is called and multiplied with."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, WIDTH)
        self.a = nn.Linear(WIDTH, WIDTH)
        self.b = nn.Linear(WIDTH, WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = F.linear(self.a(self.embed(ids)), self.b.weight, self.b.bias)
        return F.linear(hidden, self.embed.weight)


class Aliased(nn.Module):
    """Reads weights in a way that no source tells."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.linear(x, layer.weight) + x.to(layer.weight)
        return x


IDS = torch.tensor([[1, 2, 3, 4]])


@pytest.mark.parametrize("target", ["b", "embed"])
def test_a_weight_that_the_model_multiplies_with_itself_is_refused(target: str) -> None:
    assert "Functional computes with its weight itself" in reason(Functional(), lora(target))


def test_all_linear_leaves_out_what_is_read_directly() -> None:
    assert adapters.attach(Functional(), {"type": "lora", "r": 2}).targets == ("a",)


def test_what_no_source_tells_stops_at_the_first_pass() -> None:
    model = Aliased()
    adapters.attach(model, lora("layers.0"))
    with pytest.raises(AdapterError, match=r"computes with the weight of `layers\.0` itself"):
        model(torch.randn(2, WIDTH))
    with adapters.disabled(model):
        model(torch.randn(2, WIDTH))
    adapters.detach(model)
    model(torch.randn(2, WIDTH))


@pytest.mark.parametrize(
    "section", ["full", "bitfit", lora("a", modules_to_save=["b", "embed"]), lora("a", bias="all")]
)
def test_copies_are_seen_where_the_model_reads_them(section: Any) -> None:
    torch.manual_seed(0)
    agree(Functional(), section, [IDS])


def test_attention_of_torch_reads_its_output_projection() -> None:
    config = transformers.SiglipVisionConfig(
        hidden_size=16, num_hidden_layers=1, intermediate_size=16, num_attention_heads=2, image_size=8, patch_size=4
    )
    model = transformers.SiglipVisionModel(config)
    (path,) = read_directly(model)
    # below `vision_model` in older releases
    assert path.endswith("head.attention.out_proj")
    assert "computes with its weight itself" in reason(model, lora(path))
    assert path not in adapters.attach(model, {"type": "lora", "r": 2}).targets


def encoder_layer() -> nn.Module:
    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True, dropout=0.0).eval()


@pytest.mark.parametrize(
    "section",
    [
        lora("linear1", "linear2"),
        lora("linear1", modules_to_save=["self_attn"]),
        lora("linear1", bias="all"),
        "full",
        "bitfit",
        "ln_tuning",
    ],
    ids=str,
)
def test_the_fused_encoder_layer_of_torch_does_not_pass_by_the_adapter(section: Any) -> None:
    agree(encoder_layer(), section, [torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(1))])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_the_fused_encoder_of_torch_does_not_pass_by_the_adapter() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoder(encoder_layer(), 2).eval()
    x, padding = torch.randn(2, 4, WIDTH), torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1]]).bool()
    agree(model, lora("linear1"), [x, None, padding], lambda y: y[:, :3])


_MAMBA = {"vocab_size": 48, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}


def mamba() -> nn.Module:
    torch.manual_seed(0)
    return transformers.MambaForCausalLM(transformers.MambaConfig(**_MAMBA)).eval()


def test_the_time_projection_of_mamba_is_refused_and_left_out() -> None:
    assert "MambaMixer computes with its weight itself" in reason(mamba(), lora("dt_proj"))
    assert not any("dt_proj" in path for path in adapters.attach(mamba(), {"type": "lora", "r": 2}).targets)
    agree(mamba(), lora("x_proj", "out_proj"), [IDS], lambda y: y.logits)


def test_a_file_that_the_reference_refuses_says_so_and_how_to_have_another(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    expected = []
    for name, more in (("all", {}), ("fewer", {"exclude_modules": ["out_proj"]})):
        model = shaken(mamba(), {"type": "lora", "r": 2, **more})
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            adapters.save(model, tmp_path / name, base_name="base")
        told = [str(each.message) for each in caught if issubclass(each.category, AdapterWarning)]
        assert [("exclude_modules: [out_proj]" in text and "layers.0.mixer.out_proj" in text) for text in told] == (
            [] if more else [True]
        )
        expected.append(model(IDS).logits.detach())
    with pytest.raises(ValueError, match="out_proj"):
        peft.PeftModel.from_pretrained(mamba(), str(tmp_path / "all"))
    theirs = peft.PeftModel.from_pretrained(mamba(), str(tmp_path / "fewer")).eval()
    assert float((theirs(IDS).logits.detach() - expected[1]).abs().max()) < 1e-6
    assert float((mamba()(IDS).logits.detach() - expected[1]).abs().max()) > 1e-3


def test_a_fused_kernel_that_passes_by_the_layers_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mamba()
    mixer = model.get_submodule("backbone.layers.0.mixer")

    class Fused(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
            return F.linear(x, weight)

    def fused(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        inner = mixer.in_proj(hidden_states)[..., : mixer.out_proj.weight.shape[1]]
        return Fused.apply(inner, mixer.out_proj.weight)

    monkeypatch.setattr(mixer, "forward", fused)
    adapters.attach(model, lora("out_proj"))
    with pytest.raises(AdapterError, match=r"mixer\.out_proj` itself and does not call the layer"):
        model(IDS)


class Looking(nn.Module):
    """Looks at a weight in its forward, in one way or another."""

    def __init__(self, use: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.proj = nn.Linear(WIDTH, WIDTH)
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        weight = self.proj.weight
        self.use(weight)
        return self.proj(x)


FACTS: list[Callable[[Tensor], Any]] = [
    lambda w: (w.dtype, w.device.type, w.requires_grad, w.is_meta),
    lambda w: (w.shape[0], w.size(1), w.dim(), w.numel(), len(w)),
    lambda w: torch.ones(2).to(w) + 1,
    lambda w: w.new_zeros(3) + torch.zeros_like(w).sum(),
    repr,
]
USES: list[Callable[[Tensor], Any]] = [
    lambda w: w.T,
    lambda w: w + 1,
    lambda w: w[0],
    lambda w: w.data,
    lambda w: w.float(),
    lambda w: w.tolist(),
    lambda w: torch.stack([w, w]),
    lambda w: torch.einsum("oi,i->o", w, torch.ones(WIDTH)),
]


@pytest.mark.parametrize("look", FACTS)
def test_reading_facts_of_a_weight_is_no_use_of_it(look: Callable[[Tensor], Any]) -> None:
    model = Looking(look)
    adapters.attach(model, lora("proj"))
    model(torch.ones(2, WIDTH))


@pytest.mark.parametrize("use", USES)
def test_any_use_of_a_weight_past_its_layer_is_an_error(use: Callable[[Tensor], Any]) -> None:
    model = Looking(use)
    adapters.attach(model, lora("proj"))
    with pytest.raises(AdapterError, match="`proj` itself"):
        model(torch.ones(2, WIDTH))
    # from outside, and with the adapter off, it is the base's parameter as ever
    use(model.proj.weight.detach())
    assert isinstance(model.proj.weight, nn.Parameter)
    with adapters.disabled(model):
        model(torch.ones(2, WIDTH))


# -- linear layers that are not plain ---------------------------------------------------------------------------------


class Scored(nn.Linear):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


class Squashed(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(super().forward(x))


class Spelled(nn.Linear):
    """A forward of its own that is the plain product."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + self.bias


class TurnedConv(transformers.pytorch_utils.Conv1D):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flip(-1)


def packed() -> nn.Module:
    """A linear layer as 4-bit libraries make it: an `nn.Linear` whose weight is a column of bytes."""
    layer = nn.Linear(WIDTH, WIDTH)
    layer.weight = nn.Parameter(torch.zeros(WIDTH * WIDTH // 2, 1, dtype=torch.uint8), requires_grad=False)
    return layer


class WholeNumbers(nn.Module):
    """A layer of the kind that GPTQ and AWQ make."""

    def __init__(self) -> None:
        super().__init__()
        self.infeatures = self.outfeatures = WIDTH
        self.register_buffer("qweight", torch.zeros(2, WIDTH, dtype=torch.int32))


class Narrow(Tensor):
    """A tensor of another library's type that pretends to be float32."""


def foreign_tensor() -> nn.Module:
    layer = nn.Linear(WIDTH, WIDTH)
    layer.weight = nn.Parameter(torch.zeros(WIDTH, WIDTH).as_subclass(Narrow), requires_grad=False)
    return layer


def eight_bits() -> nn.Module:
    layer = nn.Linear(WIDTH, WIDTH)
    layer.weight = nn.Parameter(torch.zeros(WIDTH, WIDTH, dtype=torch.int8), requires_grad=False)
    return layer


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Scored(WIDTH, WIDTH), "returns a tuple"),
        (lambda: Squashed(WIDTH, WIDTH), "more than the product"),
        (lambda: TurnedConv(WIDTH, WIDTH), "more than the product"),
        (lambda: torch.nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)), "parametrization"),
        (lambda: torch.nn.utils.parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH)), "parametrization"),
        (lambda: torch.nn.utils.parametrizations.orthogonal(nn.Linear(WIDTH, WIDTH)), "parametrization"),
    ],
)
@pytest.mark.parametrize("method", ["lora", "ia3", "lokr", "oft"])
def test_a_linear_layer_that_is_not_plain_is_refused_by_name_and_left_out(
    make: Callable[[], nn.Module], why: str, method: str
) -> None:
    section: dict[str, Any] = {"type": method, "target_modules": ["0"]}
    section |= {"feedforward_modules": []} if method == "ia3" else {}
    assert why in reason(nn.Sequential(make(), nn.Linear(WIDTH, WIDTH)), section)
    model = nn.Sequential(make(), nn.Linear(WIDTH, WIDTH))
    assert adapters.attach(model, {"type": "lora", "r": 2}).targets == ("1",)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_the_older_weight_norm_is_seen_too() -> None:
    assert "parametrization" in str(linear_fault(torch.nn.utils.weight_norm(nn.Linear(WIDTH, WIDTH))))


def test_a_forward_that_is_the_plain_product_is_adapted() -> None:
    torch.manual_seed(0)
    agree(nn.Sequential(Spelled(WIDTH, WIDTH)), lora("0"), [torch.randn(2, WIDTH)])


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("family", ["Llama4", "Phimoe"])
def test_routers_that_return_a_tuple_are_refused_with_the_reason(family: str, device: str) -> None:
    fields = _DECODER | {"num_local_experts": 2}
    fields |= {"intermediate_size_mlp": 16, "head_dim": 4} if family == "Llama4" else {}
    config = getattr(transformers, "Llama4TextConfig" if family == "Llama4" else "PhimoeConfig")(**fields)
    with torch.device(device):
        model = getattr(transformers, f"{family}ForCausalLM")(config)
    assert "its forward returns a tuple" in reason(model, lora("router"))
    assert not any("router" in path for path in adapters.attach(model, {"type": "lora", "r": 2}).targets)


@pytest.mark.parametrize("make", [packed, WholeNumbers, foreign_tensor, eight_bits])
@pytest.mark.parametrize("section", [lora("1"), {"type": "lora", "r": 2}, "bitfit", "full"], ids=str)
def test_a_base_with_quantized_layers_is_refused(make: Callable[[], nn.Module], section: Any) -> None:
    model = nn.Sequential(make(), nn.Linear(WIDTH, WIDTH))
    assert list(quantized_layers(model)) == ["0"]
    assert "quantized" in reason(model, section)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantized_layers_of_torch_are_seen() -> None:
    model = nn.Sequential(torch.ao.nn.quantized.dynamic.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH))
    assert list(quantized_layers(model)) == ["0"]


def test_layers_that_are_not_built_yet_are_refused_until_they_are() -> None:
    model = nn.Sequential(nn.LazyLinear(WIDTH), nn.Linear(WIDTH, WIDTH))
    with pytest.raises(AdapterError, match="run the model once"):
        adapters.attach(model, {"type": "lora", "r": 2})
    model(torch.randn(2, WIDTH))
    agree(model, lora("0", "1"), [torch.randn(2, WIDTH)])


# -- modules in several places ----------------------------------------------------------------------------------------


class Twice(nn.Module):
    """One layer under three names."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(WIDTH, WIDTH)
        self.b = self.a
        self.rest = nn.ModuleList([self.a, nn.Linear(WIDTH, WIDTH)])

    def forward(self, x: Tensor) -> Tensor:
        return self.rest[1](self.rest[0](torch.tanh(self.b(torch.tanh(self.a(x))))))


@pytest.mark.parametrize("section", [lora("a"), lora("a", bias="all"), "full", "bitfit"], ids=str)
def test_a_module_that_stands_in_several_places_is_adapted_in_all(section: Any) -> None:
    torch.manual_seed(0)
    agree(Twice(), section, [torch.randn(2, WIDTH)])


def test_taking_an_adapter_out_of_several_places_leaves_the_same_tree() -> None:
    model = Twice()
    before = [(name, id(module)) for name, module in model.named_modules(remove_duplicate=False)]
    adapters.attach(model, lora("a", "rest.1"))
    adapters.detach(model)
    assert [(name, id(module)) for name, module in model.named_modules(remove_duplicate=False)] == before


# -- embeddings that are no plain lookup ------------------------------------------------------------------------------


class Normed(nn.Embedding):
    def __init__(self, rows: int, width: int) -> None:
        super().__init__(rows, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, ids: Tensor) -> Tensor:
        return self.norm(super().forward(ids)) * 3.0


class Shifted(nn.Embedding):
    """Positions behind an offset, with further arguments, as BART looks them up."""

    def forward(self, ids: Tensor, past: int = 0) -> Tensor:
        return super().forward(ids + 2 + past)


class Indexed(nn.Embedding):
    def forward(self, ids: Tensor) -> Tensor:
        return self.weight[ids]


class Bag(nn.Module):
    def __init__(self, kind: type[nn.Embedding]) -> None:
        super().__init__()
        self.embed = kind(12, WIDTH)
        self.past = (1,) if kind is Shifted else ()
        self.proj = nn.Linear(WIDTH, WIDTH)

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def forward(self, ids: Tensor) -> Tensor:
        return self.proj(torch.tanh(self.embed(ids, *self.past)))


ON_EMBEDDINGS = [
    lora("embed"),
    lora("embed", use_dora=True),
    lora("proj", trainable_token_indices={"embed": [3, 4]}),
    lora("proj", modules_to_save=["embed"]),
    "full",
]


@pytest.mark.parametrize("section", ON_EMBEDDINGS, ids=str)
@pytest.mark.parametrize("kind", [Normed, Shifted, nn.Embedding])
def test_rows_are_changed_before_the_embedding_does_its_own(kind: type[nn.Embedding], section: Any) -> None:
    torch.manual_seed(0)
    agree(Bag(kind), section, [IDS])


@pytest.mark.parametrize("section", ON_EMBEDDINGS[:3], ids=str)
def test_an_embedding_that_looks_nothing_up_stops(section: Any) -> None:
    model = Bag(Indexed)
    adapters.attach(model, section)
    with pytest.raises(AdapterError, match="in another way than by looking up rows"):
        model(IDS)


def test_a_table_that_edits_itself_is_refused() -> None:
    model = nn.Sequential(nn.Embedding(12, WIDTH, max_norm=1.0), nn.Linear(WIDTH, WIDTH))
    assert "max_norm" in reason(model, lora("0"))


def scaled(family: str) -> tuple[nn.Module, str]:
    if family == "Gemma3":
        config = transformers.Gemma3TextConfig(**_DECODER, head_dim=4)
        return transformers.Gemma3ForCausalLM(config), "model.embed_tokens"
    fields = {f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    config = transformers.BartConfig(vocab_size=48, d_model=16, encoder_ffn_dim=16, decoder_ffn_dim=16, dropout=0.0,
                                     scale_embedding=True, **fields)  # fmt: skip
    return transformers.BartForConditionalGeneration(config), "decoder.embed_positions"


@pytest.mark.parametrize("family", ["Gemma3", "Bart"])
def test_scaled_embeddings_and_positions_of_real_families(family: str) -> None:
    torch.manual_seed(0)
    model, target = scaled(family)
    agree(model.eval(), lora(target), [IDS], lambda y: y.logits)
