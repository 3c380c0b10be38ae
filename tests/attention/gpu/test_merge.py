"""The merge kernels, against float64 and the reference."""

import math

import pytest
import torch
from merge_problems import INF, NAN, assert_merged, make_states

from warploom.attention import merge_state, merge_state_in_place, merge_states
from warploom.attention.merge import MERGE_STATES
from warploom.core.testing import assert_close, cases, poison_like

pytestmark = pytest.mark.gpu

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize(
    *cases(states=[0, 1, 2, 5, 16, 33, 130, 1000, 4099], dim=[8, 36, 64, 128, 512], dtype=DTYPES, strided=[False, True])
)
def test_merge_states(case):
    rows, heads = (2, 3) if case.states < 1000 else (1, 2)
    v, s = make_states(rows, case.states, heads, case.dim, case.dtype, device="cuda", strided=case.strided)
    buffers = poison_like(torch.empty(rows, heads, case.dim, dtype=case.dtype, device="cuda")), None
    assert_merged(merge_states(v, s, out=buffers[0], backend="cuda"), v, s)


@pytest.mark.parametrize(*cases(dim=[8, 20, 36, 128, 256, 1000], dtype=DTYPES, strided=[False, True]))
def test_merge_state(case):
    v, s = make_states(7, 2, 5, case.dim, case.dtype, device="cuda", strided=case.strided)
    assert_merged(merge_state(v[:, 0], s[:, 0], v[:, 1], s[:, 1], backend="cuda"), v, s)


@pytest.mark.parametrize("output", [torch.bfloat16, torch.float16])
def test_float32_partial_results_become_16_bit(output):
    v, s = make_states(6, 9, 4, 128, torch.float32, device="cuda")
    out = torch.empty(6, 4, 128, dtype=output, device="cuda")
    assert_merged(merge_states(v, s, out=out, backend="cuda"), v, s)


@pytest.mark.parametrize("states", [3, 40, 600])
def test_nan_and_infinities(states):
    v, s = make_states(6, states, 2, 64, torch.bfloat16, device="cuda")
    s[0, 1, 0], s[1, 2, 1], s[2, :, 0], s[3, :, 1], s[4, 0, 0] = NAN, INF, NAN, -INF, -INF
    assert_merged(merge_states(v, s, backend="cuda"), v, s)
    assert_merged(merge_state(v[:, 1], s[:, 1], v[:, 2], s[:, 2], backend="cuda"), v[:, 1:3], s[:, 1:3])


@pytest.mark.parametrize("base", [("log2", 2.0), ("e", math.e)])
def test_bases(base):
    v, s = make_states(3, 20, 2, 64, torch.float32, device="cuda")
    assert_merged(merge_states(v, s, lse_base=base[0], backend="cuda"), v, s, base[1])


@pytest.mark.parametrize("states", [2, 4, 17, 100])
def test_many_rows_match_the_reference(states):
    v, s = make_states(1500, states, 8, 128, torch.bfloat16, device="cuda")
    got, want = merge_states(v, s), merge_states(v, s, backend="reference")
    assert MERGE_STATES.last.name == "reference"
    assert_close(got[0], want[0])
    assert_close(got[1], want[1], atol=2e-5)


@pytest.mark.parametrize("dim", [64, 512, 1000])
@pytest.mark.parametrize("masked", [False, True])
def test_in_place_with_thousands_of_rows(dim, masked):
    """Lanes of a head in several warps must all have read the log-sum-exp before one overwrites it."""
    v, s = make_states(3000, 2, 7, dim, torch.float32, device="cuda")
    mask = torch.rand(3000, device="cuda") < 0.5 if masked else None
    results = []
    for backend in ("cuda", "reference"):
        mine = v[:, 0].clone(), s[:, 0].clone()
        merge_state_in_place(*mine, v[:, 1], s[:, 1], mask, backend=backend)
        results.append(mine)
    assert_close(results[0][0], results[1][0])
    assert_close(results[0][1], results[1][1], atol=2e-5)


def test_a_row_does_not_depend_on_its_batch():
    for states in (3, 50, 700):
        v, s = make_states(200, states, 8, 128, torch.bfloat16, device="cuda")
        together = merge_states(v, s, backend="cuda")
        alone = merge_states(v[77:78], s[77:78], backend="cuda")
        assert torch.equal(together[0][77:78], alone[0])
        assert torch.equal(together[1][77:78], alone[1])


def test_offsets_past_int32():
    free, _ = torch.cuda.mem_get_info()
    if free < 10 * 2**30:
        pytest.skip(f"needs 10 GiB of GPU memory, {free / 2**30:.1f} are free")
    v = torch.empty(1050, 512, 32, 128, dtype=torch.bfloat16, device="cuda").normal_()
    s = torch.randn(1050, 512, 32, device="cuda")
    assert v.numel() > 2**31
    assert_merged(merge_states(v, s, backend="cuda"), v, s, rows=[0, 1049])


def test_graph_replays_with_new_states():
    v, s = make_states(40, 30, 4, 64, torch.float16, device="cuda")
    out, lse = torch.empty(40, 4, 64, dtype=torch.float16, device="cuda"), torch.empty(40, 4, device="cuda")
    mask = torch.ones(40, dtype=torch.bool, device="cuda")
    graph = torch.cuda.CUDAGraph()
    merge_state_in_place(*merge_states(v, s, out=out, lse=lse), v[:, 0], s[:, 0], mask)  # compiles before the capture
    with torch.cuda.graph(graph):
        merge_states(v, s, out=out, lse=lse, backend="cuda")
        merge_state_in_place(out, lse, v[:, 0], s[:, 0], mask, backend="cuda")
    for seed in range(3):
        new_v, new_s = make_states(40, 30, 4, 64, torch.float16, device="cuda", seed=seed)
        v.copy_(new_v)
        s.copy_(new_s)
        mask.copy_(torch.rand(40, device="cuda") < 0.5)
        graph.replay()
        want = merge_states(v, s, backend="reference")
        merge_state_in_place(*want, v[:, 0], s[:, 0], mask, backend="reference")
        assert_close(out, want[0])
        assert_close(lse, want[1], atol=2e-5)
