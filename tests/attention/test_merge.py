"""Merging attention states."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_problems import INF, NAN, assert_merged, expected_merge, make_states

from warploom.attention import merge_state, merge_state_in_place, merge_states
from warploom.attention.backends.cuda.merge import merge_states_shape
from warploom.attention.merge import MERGE_STATES
from warploom.attention.problems.merge import MergeProblem
from warploom.core.errors import ArgumentError, UnsupportedError
from warploom.core.testing import assert_close, cases, poison_like, random_normal

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def pair(*sizes, **options):
    v, s = make_states(sizes[0], 2, *sizes[1:], **options)
    return v[:, 0], s[:, 0], v[:, 1], s[:, 1]


@pytest.mark.parametrize(*cases(states=[1, 2, 7, 40], dtype=DTYPES, strided=[False, True]))
def test_merge_states(case):
    v, s = make_states(5, case.states, 3, 16, case.dtype, strided=case.strided)
    merged = merge_states(v, s)
    assert merged[0].dtype == case.dtype
    assert merged[1].dtype == torch.float32
    assert_merged(merged, v, s)


@pytest.mark.parametrize(*cases(dtype=DTYPES, strided=[False, True]))
def test_merge_state(case):
    state = pair(6, 3, 16, dtype=case.dtype, strided=case.strided)
    merged = merge_state(*state)
    assert merged[0].dtype == case.dtype
    assert_merged(merged, torch.stack(state[::2], 1), torch.stack(state[1::2], 1))


def test_merging_equals_attention_over_all_keys():
    q, k, v = random_normal((4, 2, 16)), random_normal((50, 2, 16), seed=1), random_normal((50, 2, 16), seed=2)

    def attention(keys, values):
        logits = torch.einsum("nhd,khd->nhk", q, keys)
        return torch.einsum("nhk,khd->nhd", logits.softmax(-1), values), logits.logsumexp(-1) / math.log(2)

    parts = [attention(k[i:j], v[i:j]) for i, j in ((0, 7), (7, 8), (8, 50))]
    expected = attention(k, v)
    many = merge_states(torch.stack([p[0] for p in parts], 1), torch.stack([p[1] for p in parts], 1))
    two = merge_state(*merge_state(*parts[0], *parts[1]), *parts[2])
    for merged in (many, two):
        assert_close(merged[0], expected[0])
        assert_close(merged[1], expected[1])


def test_rows_without_keys_give_zero_and_minus_infinity():
    v = torch.full((2, 3, 1, 8), NAN)
    out, lse = merge_states(v, torch.full((2, 3, 1), -INF))
    assert not out.any()
    assert (lse == -INF).all()
    nothing = v[:, 0], torch.full((2, 1), -INF)
    out, lse = merge_state(*nothing, *nothing)
    assert not out.any()
    assert (lse == -INF).all()


def test_no_states_and_no_rows():
    out, lse = merge_states(torch.zeros(2, 0, 3, 8), torch.zeros(2, 0, 3))
    assert not out.any()
    assert (lse == -INF).all()
    assert merge_states(torch.zeros(0, 4, 3, 8), torch.zeros(0, 4, 3))[0].shape == (0, 3, 8)
    assert merge_state(*2 * (torch.zeros(0, 3, 8), torch.zeros(0, 3)))[1].shape == (0, 3)


def test_nan_stays_in_its_row():
    v, s = make_states(4, 9, 2, 8, torch.float32)
    s[1, 3, 0], s[2, 4, 1], s[3, :, 1] = NAN, INF, NAN
    out, lse = merge_states(v, s)
    assert_merged((out, lse), v, s)
    assert lse[1, 0].isnan()
    assert not lse[1, 1].isnan()


@pytest.mark.parametrize("offset", [-1e5, 1e5, 3e37])
def test_large_log_sum_exps(offset):
    v, s = random_normal((3, 4, 2, 8)), torch.full((3, 4, 2), offset)
    out, lse = merge_states(v, s)
    assert_close(out, v.double().mean(1))
    assert_close(lse, torch.full((3, 2), offset).double() + 2)


@pytest.mark.parametrize("base", [("log2", 2.0), ("e", math.e)])
def test_bases(base):
    v, s = make_states(3, 5, 2, 8, torch.float32)
    assert_merged(merge_states(v, s, lse_base=base[0]), v, s, base[1])
    state = v[:, 0], s[:, 0], v[:, 1], s[:, 1]
    assert_merged(merge_state(*state, lse_base=base[0]), v[:, :2], s[:, :2], base[1])


@pytest.mark.parametrize("masked", [False, True])
def test_in_place(masked):
    v_a, s_a, v_b, s_b = pair(6, 3, 16, dtype=torch.float16)
    before = v_a.clone(), s_a.clone()
    mask = torch.arange(6) % 2 == 0 if masked else None
    merge_state_in_place(v_a, s_a, v_b, s_b, mask)
    values, totals = expected_merge(torch.stack((before[0], v_b), 1), torch.stack((before[1], s_b), 1))
    if masked:
        assert torch.equal(v_a[1::2].view(torch.int16), before[0][1::2].view(torch.int16))
        assert torch.equal(s_a[1::2], before[1][1::2])
    chosen = slice(None, None, 2 if masked else 1)
    assert_close(v_a[chosen], values[chosen])
    assert_close(s_a[chosen], totals[chosen], atol=2e-5)


def test_buffers_of_the_caller():
    v, s = make_states(3, 5, 2, 8, torch.float32)
    out, lse = poison_like(torch.empty(3, 2, 8, dtype=torch.bfloat16)), poison_like(torch.empty(3, 2))
    results = merge_states(v, s, out=out, lse=lse)
    assert results[0] is out
    assert results[1] is lse
    assert_merged(results, v, s)
    results = merge_state(v[:, 0], s[:, 0], v[:, 1], s[:, 1], out=out, lse=lse)
    assert_merged(results, v[:, :2], s[:, :2])


@settings(max_examples=40)
@given(
    rows=st.integers(0, 4),
    states=st.integers(0, 12),
    heads=st.integers(1, 3),
    dim=st.integers(1, 20),
    spread=st.sampled_from([0.0, 1.0, 100.0]),
    seed=st.integers(0, 1000),
)
def test_random_problems(rows, states, heads, dim, spread, seed):
    v, s = make_states(rows, states, heads, dim, torch.float32, spread=spread, seed=seed)
    assert_merged(merge_states(v, s), v, s)


def test_other_libraries_tensors():
    v, s = make_states(3, 5, 2, 8, torch.float32)
    assert torch.equal(merge_states(v.numpy(), s.numpy())[0], merge_states(v, s)[0])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"v": torch.zeros(3, 5, 2)}, ["v", "seq_len, num_states, num_heads, head_dim"]),
        ({"v": torch.zeros(3, 5, 2, 8, dtype=torch.float64)}, ["v", "float16 or bfloat16 or float32", "float64"]),
        ({"s": torch.zeros(3, 5, 2, dtype=torch.float16)}, ["s", "float32", "float16"]),
        ({"s": torch.zeros(3, 4, 2)}, ["s", "num_states = 5", "num_states = 4"]),
        ({"out": torch.zeros(3, 2, 7)}, ["out", "head_dim"]),
        ({"out": torch.zeros(3, 2, 8, dtype=torch.int32)}, ["out", "int32"]),
        ({"lse": torch.zeros(3, 2, dtype=torch.float16)}, ["lse", "float32"]),
        ({"lse_base": "ln"}, ["lse_base", "'log2' or 'e'", "'ln'"]),
        ({"backend": "cudnn"}, ["backend", "cuda, reference"]),
    ],
)
def test_bad_arguments_name_themselves(change, words):
    arguments = {"v": torch.zeros(3, 5, 2, 8), "s": torch.zeros(3, 5, 2)} | change
    with pytest.raises(ArgumentError) as error:
        merge_states(**arguments)
    for word in ["merge_states", *words]:
        assert word in str(error.value)


def test_bad_states():
    v, s = torch.zeros(3, 2, 8), torch.zeros(3, 2)
    with pytest.raises(ArgumentError, match="`v_b` must be"):
        merge_state(v, s, v.half(), s)
    with pytest.raises(ArgumentError, match="`s_other` must be"):
        merge_state_in_place(v, s, v, s[:2])
    with pytest.raises(ArgumentError, match="`mask` must be of dtype bool"):
        merge_state_in_place(v, s, v, s, torch.ones(3))
    with pytest.raises(UnsupportedError, match="GPU"):
        merge_state(v, s, v, s, backend="cuda")


def test_cuda_backend_says_what_it_lacks():
    gpu = {"device_type": "cuda", "arch": 90, "device_name": "any", "lse_base": "log2"}
    dtypes = {"input_dtype": torch.half, "output_dtype": torch.half}
    cuda = MERGE_STATES.backends["cuda"]
    assert cuda.check(MergeProblem(head_dim=512, unit_strides=True, **dtypes, **gpu))
    reasons = cuda.check(MergeProblem(head_dim=2048, unit_strides=False, **dtypes, **gpu)).reasons
    assert ["contiguous" in reasons[0], "1024" in reasons[1]] == [True, True]


def test_inside_a_compiled_program():
    def program(v, s, mask):
        a = merge_states(v, s)
        b = merge_state(*a, v[:, 0], s[:, 0])
        merge_state_in_place(*a, *b, mask)
        return *a, *b

    torch.compiler.reset()
    compiled = torch.compile(program, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (3, 5):
        v, s = make_states(rows, 4, 2, 8, torch.float32)
        mask = torch.arange(rows) > 1
        for got, want in zip(compiled(v, s, mask), program(v, s, mask), strict=True):
            torch.testing.assert_close(got, want)


def test_exports_as_a_node():
    class Merge(torch.nn.Module):
        def forward(self, v, s):
            return merge_states(v, s)

    v, s = make_states(3, 4, 2, 8, torch.float32)
    exported = torch.export.export(Merge(), (v, s))
    assert "warploom.merge_states.default" in {str(node.target) for node in exported.graph.nodes}
    torch.testing.assert_close(exported.module()(v, s), merge_states(v, s))


@given(row_heads=st.integers(1, 10**6), states=st.integers(0, 5000), head_vectors=st.integers(1, 1024))
def test_shape_of_the_launch(row_heads, states, head_vectors):
    (rows_grid, parts), (lanes, heads, groups) = merge_states_shape(row_heads, states, head_vectors)
    assert lanes * heads * groups <= 512
    assert groups <= 64
    assert groups & (groups - 1) == 0
    assert (rows_grid - 1) * heads < row_heads <= rows_grid * heads
    assert (parts - 1) * lanes < head_vectors <= parts * lanes
    assert groups == merge_states_shape(1, states, head_vectors)[1][2], (
        "the order of summation follows from a row alone"
    )
