"""A fingerprint sees every bit of every weight, and knows one model in different types."""

from __future__ import annotations

import pytest
import torch

from peftcli.models.fingerprint import Fingerprint, fingerprint

HALVES = (torch.bfloat16, torch.float16)


def weights(dtype: torch.dtype = torch.float32, stored: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (300, 700), "b": (64,), "c": (1,), "d": (0, 3), "e": ()}
    return {name: torch.randn(shape, generator=generator).to(stored).to(dtype) for name, shape in shapes.items()}


def of(tensors: dict[str, torch.Tensor]) -> Fingerprint:
    return fingerprint(tensors.items())


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_a_flipped_bit_anywhere_is_another_model(dtype: torch.dtype) -> None:
    known = of(weights(dtype))
    assert known.difference(of(weights(dtype))) is None
    for place in (0, 1, 101, 209_999, 123_456):
        tensors = weights(dtype)
        bits = tensors["a"].view(-1).view(torch.int16 if dtype in HALVES else torch.int32)
        bits[place] ^= 1
        assert known.difference(of(tensors)) == "the weights differ", place


def test_swapped_values_are_another_model() -> None:
    """Also at places whose numbers agree in their remainders, which a weighted sum takes for equal."""
    known = of(weights())
    for one, other in ((0, 1), (5, 5 + 65_521), (7, 7 + 65_536)):
        tensors = weights()
        flat = tensors["a"].view(-1)
        flat[[one, other]] = flat[[other, one]]
        assert known.difference(of(tensors)) == "the weights differ"


@pytest.mark.parametrize("recorded", HALVES)
def test_a_change_between_the_places_of_a_sample_shows_in_another_type_too(recorded: torch.dtype) -> None:
    known = of(weights(recorded))
    assert known.difference(of(weights())) is None, "the same model"
    tensors = weights()
    flat = tensors["a"].view(-1)
    kept = torch.arange(0, flat.numel(), flat.numel() // 64)
    changed = torch.ones_like(flat, dtype=torch.bool)
    changed[kept] = False
    flat[changed] *= 1.5
    assert known.difference(of(tensors)) == "the weights differ"
    assert of(tensors).difference(known) == "the weights differ"


@pytest.mark.parametrize("stored", HALVES)
@pytest.mark.parametrize("one", [torch.float32, *HALVES])
@pytest.mark.parametrize("other", [torch.float32, *HALVES])
def test_a_checkpoint_in_sixteen_bits_is_the_same_model_in_whatever_type_it_is_loaded(
    stored: torch.dtype, one: torch.dtype, other: torch.dtype
) -> None:
    assert of(weights(one, stored)).difference(of(weights(other, stored))) is None


def test_what_two_types_cannot_tell_is_said() -> None:
    difference = of(weights(torch.bfloat16)).difference(of(weights(torch.float16)))
    assert difference is not None
    assert "load them in float32" in difference


def test_names_shapes_and_mixed_types_count() -> None:
    known = of(weights())
    assert known.difference(of({**weights(), "f": torch.ones(1)})) == "names or shapes of the parameters differ"
    assert known.difference(of({**weights(), "a": weights()["a"].T})) == "names or shapes of the parameters differ"
    mixed = {**weights(torch.bfloat16), "b": weights()["b"]}
    assert of(mixed).difference(of(weights(torch.bfloat16))) == "the weights differ", "a finer tensor in one of them"
    assert of(mixed).difference(known) is None, "float32 says that it is the same model"


def test_the_layout_in_memory_and_the_number_of_threads_do_not_count() -> None:
    known = of(weights())
    tensors = weights()
    tensors["a"] = tensors["a"].T.contiguous().T
    assert of(tensors) == known
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert of(weights()) == known
    finally:
        torch.set_num_threads(threads)


def test_a_record_of_an_older_scheme_is_compared_by_its_structure() -> None:
    known = of(weights())
    older = {"structure": known.structure, "coarse": "x", "exact": "y", "dtype": "float32"}
    assert Fingerprint.from_dict(older).difference(known) is None
    assert Fingerprint.from_dict({**older, "structure": "z"}).difference(known) is not None
    assert Fingerprint.from_dict(known.to_dict()) == known
