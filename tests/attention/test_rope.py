"""Rotary position embeddings, against complex multiplication in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import warploom.attention as attention
from warploom.attention import (
    apply_llama31_rope,
    apply_llama31_rope_pos_ids,
    apply_rope,
    apply_rope_pos_ids,
    apply_rope_pos_ids_inplace,
    apply_rope_with_cos_sin_cache,
)
from warploom.attention.backends.reference.rotation import cos_sin, frequencies, llama31_frequencies, rotate
from warploom.core.errors import ArgumentError
from warploom.core.testing import assert_close, cases, indptr_of, poison_like, random_normal, random_strided

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def plain_frequency(pair, rotary_dim, scale=1.0, theta=1e4):
    return theta ** (-2 * pair / rotary_dim) / scale


def llama31_frequency(pair, rotary_dim, scale=8.0, theta=5e5, low=1.0, high=4.0, context=8192):
    """As the model's own code states it: by wavelength, with three cases."""
    exact = theta ** (-2 * pair / rotary_dim)
    wavelength = 2 * math.pi / exact
    if wavelength < context / high:
        return exact
    if wavelength > context / low:
        return exact / scale
    smooth = (context / wavelength - low) / (high - low)
    return (1 - smooth) * exact / scale + smooth * exact


def turned(x, positions, rotary_dim, interleave, frequency=plain_frequency, **options):
    """Every pair of components as a complex number times e^(i position frequency)."""
    x, out = x.double(), x.double().clone()
    for pair in range(rotary_dim // 2):
        first, second = (2 * pair, 2 * pair + 1) if interleave else (pair, pair + rotary_dim // 2)
        angle = positions.double() * torch.tensor(frequency(pair, rotary_dim, **options)).float().double()
        spun = torch.complex(x[..., first], x[..., second]) * torch.polar(torch.ones_like(angle), angle)[:, None]
        out[..., first], out[..., second] = spun.real, spun.imag
    return out


def qk(nnz, dtype=torch.float32, head_dim=16, make=random_normal):
    return make((nnz, 6, head_dim), dtype), make((nnz, 2, head_dim), dtype, seed=1)


@pytest.mark.parametrize(*cases(rotary_dim=[None, 2, 12, 16], interleave=[False, True], dtype=DTYPES))
def test_rotation_by_position(case):
    q, k = qk(5, case.dtype)
    positions = torch.tensor([0, 1, 7, 300, 5000])
    rotated = apply_rope_pos_ids(q, k, positions, case.rotary_dim, case.interleave, rope_scale=2.0, rope_theta=1e3)
    for x, got in zip((q, k), rotated, strict=True):
        assert got.dtype == case.dtype
        expected = turned(x, positions, case.rotary_dim or 16, case.interleave, scale=2.0, theta=1e3)
        # Angles are float32: at position 5000 the last bit is worth 2.4e-4 radians.
        assert_close(got, expected, atol=3e-3 if case.dtype == torch.float32 else None)
        if case.rotary_dim:
            assert torch.equal(got[..., case.rotary_dim :], x[..., case.rotary_dim :])


def test_position_zero_changes_nothing():
    q, k = qk(3)
    q_rope, k_rope = apply_rope_pos_ids(q, k, torch.zeros(3, dtype=torch.int32))
    assert torch.equal(q_rope, q)
    assert torch.equal(k_rope, k)


def test_products_depend_on_distance_alone():
    q, k = qk(1, torch.float32, 64)
    near = apply_rope_pos_ids(q[:, :2], k, torch.tensor([9]))[0] * apply_rope_pos_ids(q, k, torch.tensor([4]))[1]
    far = apply_rope_pos_ids(q[:, :2], k, torch.tensor([509]))[0] * apply_rope_pos_ids(q, k, torch.tensor([504]))[1]
    assert_close(near.sum(-1), far.sum(-1), atol=1e-3)


@settings(max_examples=30)
@given(
    lens=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 100)), max_size=5),
    padding=st.integers(0, 3),
    dtype=st.sampled_from([torch.int32, torch.int64]),
)
def test_ragged_requests(lens, padding, dtype):
    positions = [offset + i for n, offset in lens for i in range(n)]
    q, k = qk(len(positions) + padding)
    indptr, offsets = indptr_of([n for n, _ in lens]).to(dtype), torch.tensor([o for _, o in lens], dtype=dtype)
    q_rope, k_rope = apply_rope(q, k, indptr, offsets)
    expected = apply_rope_pos_ids(q, k, torch.tensor(positions + [0] * padding, dtype=dtype))
    assert torch.equal(q_rope, expected[0])
    assert torch.equal(k_rope, expected[1])


@pytest.mark.parametrize("interleave", [False, True])
def test_llama31(interleave):
    q, k = qk(4, head_dim=128)
    positions = torch.tensor([0, 3, 900, 20_000])
    for x, got in zip((q, k), apply_llama31_rope_pos_ids(q, k, positions, None, interleave), strict=True):
        assert_close(got, turned(x, positions, 128, interleave, llama31_frequency), atol=1e-2)
    by_request = apply_llama31_rope(q, k, indptr_of([1, 1, 2]), torch.tensor([0, 3, 900]), None, interleave)
    again = apply_llama31_rope_pos_ids(q, k, torch.tensor([0, 3, 900, 901]), None, interleave)
    assert torch.equal(by_request[0], again[0])


def test_llama31_frequencies_have_three_ranges():
    got = llama31_frequencies(128).tolist()
    for pair, value in enumerate(got):
        assert value == pytest.approx(llama31_frequency(pair, 128), rel=1e-6)
    plain = frequencies(128, 1.0, 5e5).tolist()
    assert got[0] == plain[0]
    assert got[-1] == pytest.approx(plain[-1] / 8, rel=1e-6)
    options = {"rope_scale": 32.0, "rope_theta": 1e4, "low_freq_factor": 2.0, "high_freq_factor": 8.0}
    tuned = llama31_frequencies(64, **options, old_context_len=512).tolist()
    for pair, value in enumerate(tuned):
        assert value == pytest.approx(llama31_frequency(pair, 64, 32.0, 1e4, 2.0, 8.0, 512), rel=1e-6)


@pytest.mark.parametrize(*cases(is_neox=[True, False], rotary_dim=[8, 16], dtype=DTYPES))
def test_cos_sin_cache(case):
    q, k = qk(4, case.dtype)
    angles = cos_sin(torch.arange(50), frequencies(case.rotary_dim))
    positions = torch.tensor([3, 49, 0, 3])
    flat = q.flatten(1), k.flatten(1)
    got = apply_rope_with_cos_sin_cache(positions, *flat, 16, torch.cat(angles, -1), case.is_neox)
    expected = apply_rope_pos_ids(q, k, positions, case.rotary_dim, not case.is_neox)
    assert torch.equal(got[0], expected[0].flatten(1))
    assert torch.equal(got[1], expected[1].flatten(1))


IN_PLACE = {
    "apply_rope": lambda: (*qk(5), indptr_of([2, 3]), torch.tensor([7, 1])),
    "apply_rope_pos_ids": lambda: (*qk(5), torch.arange(5)),
    "apply_llama31_rope": lambda: (*qk(5), indptr_of([2, 3]), torch.tensor([7, 1])),
    "apply_llama31_rope_pos_ids": lambda: (*qk(5), torch.arange(5)),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place_and_into_buffers(name):
    q, k, *rest = IN_PLACE[name]()
    expected = getattr(attention, name)(q, k, *rest)
    out = poison_like(q), poison_like(k)
    results = getattr(attention, name)(q, k, *rest, out=out)
    assert results[0] is out[0]
    assert getattr(attention, f"{name}_inplace")(q, k, *rest) is None
    for got, buffer, want in zip((q, k), out, expected, strict=True):
        assert torch.equal(got, want)
        assert torch.equal(buffer, want)


def test_cos_sin_cache_in_place_and_into_buffers():
    q, k = (x.flatten(1) for x in qk(5))
    rest = 16, torch.cat(cos_sin(torch.arange(9), frequencies(16)), -1)
    expected = apply_rope_with_cos_sin_cache(torch.arange(5), q, k, *rest)
    out = poison_like(q), poison_like(k)
    assert apply_rope_with_cos_sin_cache(torch.arange(5), q, k, *rest, out=out)[0] is out[0]
    attention.apply_rope_with_cos_sin_cache_inplace(torch.arange(5), q, k, *rest)
    for got, buffer, want in zip((q, k), out, expected, strict=True):
        assert torch.equal(got, want)
        assert torch.equal(buffer, want)


def test_strided_inputs():
    for last_contiguous in (True, False):
        q, k = qk(4, make=lambda *a, **kw: random_strided(*a, **kw, last_contiguous=last_contiguous))  # noqa: B023
        dense = q.contiguous(), k.contiguous()
        expected = apply_rope_pos_ids(*dense, torch.arange(4))
        apply_rope_pos_ids_inplace(q, k, torch.arange(4))
        assert torch.equal(q, expected[0])
        assert torch.equal(k, expected[1])


def test_no_rows():
    q, k = qk(0)
    assert apply_rope(q, k, indptr_of([]), torch.zeros(0, dtype=torch.int32))[0].shape == (0, 6, 16)
    flat = q.flatten(1), k.flatten(1)
    assert apply_rope_with_cos_sin_cache(torch.arange(0), *flat, 16, torch.zeros(4, 16))[1].shape == (0, 32)


def test_rotation_keeps_float64():
    x = random_normal((3, 2, 8)).double()
    cos, sin = (t.double()[:, None] for t in cos_sin(torch.arange(3), frequencies(8)))
    assert_close(rotate(x, cos, sin), turned(x, torch.arange(3), 8, False), rtol=1e-6)
    assert rotate(x, cos, sin).dtype == torch.float64


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda q, k: apply_rope_pos_ids(q[0], k, torch.arange(3)), ["apply_rope_pos_ids", "`q`", "2-D"]),
        (lambda q, k: apply_rope_pos_ids(q, k.half(), torch.arange(3)), ["`k`", "float32", "float16"]),
        (lambda q, k: apply_rope_pos_ids(q, k[1:], torch.arange(3)), ["`k`", "nnz = 3", "nnz = 2"]),
        (lambda q, k: apply_rope_pos_ids(q, k, torch.arange(3.0)), ["`pos_ids`", "int32"]),
        (lambda q, k: apply_rope_pos_ids(q, k, torch.arange(3), 5), ["`rotary_dim`", "even", "16", "5"]),
        (lambda q, k: apply_rope_pos_ids(q, k, torch.arange(3), 18), ["`rotary_dim`", "18"]),
        (lambda q, k: apply_rope_pos_ids(q, k, torch.arange(3), rope_scale=0), ["`rope_scale`", "positive"]),
        (lambda q, k: apply_rope_pos_ids(q, k, torch.arange(3), out=(q.half(), k)), ["`out[0]`", "float32"]),
        (lambda q, k: apply_rope(q, k, indptr_of([3]), torch.zeros(2, dtype=torch.int32)), ["`offsets`", "batch = 1"]),
        (lambda q, k: apply_llama31_rope_pos_ids(q, k, torch.arange(3), high_freq_factor=1), ["`high_freq_factor`"]),
        (lambda q, k: apply_rope_pos_ids(q, k, torch.arange(3), backend="vulkan"), ["`backend`", "reference"]),
        (lambda q, k: by_cache(q, k, head_size=7), ["`query`", "head_size 7"]),
        (lambda q, k: by_cache(q, k, positions=[0, 9, 1]), ["`positions`", "0 to 8", "0 to 9"]),
        (lambda q, k: by_cache(q, k, positions=[0, -1, 1]), ["`positions`", "-1 to 1"]),
        (lambda q, k: by_cache(q, k, cache=torch.zeros(9, 18)), ["`cos_sin_cache`", "18"]),
    ],
)
def test_bad_arguments_name_themselves(call, words):
    with pytest.raises(ArgumentError) as error:
        call(*qk(3))
    for word in words:
        assert word in str(error.value)


def by_cache(q, k, head_size=16, positions=(0, 1, 2), cache=None):
    table = torch.zeros(9, 16) if cache is None else cache
    return apply_rope_with_cos_sin_cache(torch.tensor(positions), q.flatten(1), k.flatten(1), head_size, table)


def test_inside_a_compiled_program():
    table = torch.cat(cos_sin(torch.arange(9), frequencies(16)), -1)

    def program(q, k, pos_ids, indptr, offsets):
        q, k = apply_rope_pos_ids(q, k, pos_ids, 8, True)
        q, k = apply_llama31_rope(q, k, indptr, offsets)
        apply_rope_pos_ids_inplace(q, k, pos_ids)
        flat = apply_rope_with_cos_sin_cache(pos_ids, q.flatten(1), k.flatten(1), 16, table)
        return q, k, *flat

    torch.compiler.reset()
    compiled = torch.compile(program, fullgraph=True, backend="aot_eager", dynamic=True)
    for nnz in (4, 6):
        arguments = *qk(nnz), torch.arange(nnz), indptr_of([1, nnz - 1]), torch.tensor([5, 2])
        for got, want in zip(compiled(*arguments), program(*arguments), strict=True):
            torch.testing.assert_close(got, want)
