"""The kernels of `attention_hopper.cuh` and `attention_cutlass.cuh`: how their tiles of 128 rows and 128 keys are filled, by
TMA and without."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paged_steps import Step, close, options_of_plans, random, why_no_kernel

from warploom.attention import BatchPrefillWithRaggedKVCacheWrapper, single_prefill_with_kv_cache_return_lse
from warploom.core.testing import cases

pytestmark = pytest.mark.gpu(arch=90)


@pytest.fixture(params=["hopper", "cutlass"])
def kernel(request):
    if why := why_no_kernel(request.param):
        pytest.skip(why)
    return request.param


@pytest.mark.parametrize(
    *cases(
        page_size=[1, 4, 8, 16, 24, 64, 128, 256, 1024], dim=[64, 128],
        kv_lens=[[128, 256, 1], [127, 129, 1000], [1024, 4097, 300]],
    )
)  # fmt: skip
def test_pages_of_any_size(case):
    Step([5, 70, 300], case.kv_lens, dim=case.dim, page_size=case.page_size).check(causal=True)


@pytest.mark.parametrize("dims", [(96, 96), (192, 128), (256, 256)])
@pytest.mark.parametrize("page_size", [1, 8, 16, 64, 128])
@pytest.mark.parametrize("group", [3, 4])
def test_heads_of_other_sizes(dims, page_size, group):
    heads = {"heads": (2 * group, 2), "dim": dims[0], "dim_v": dims[1], "page_size": page_size}
    step = Step([5, 70, 300, 128, 1], [128, 1000, 300, 129, 4097], dtype=torch.bfloat16, **heads)
    for options in ({"causal": True}, {}, {"window_left": 100, "logits_soft_cap": 20.0}):
        close(step.run("hopper", **options), step.reference(**options), step.dtype)


@pytest.mark.parametrize("dims", [(96, 96), (192, 128), (256, 256)])
def test_rows_without_pages_of_other_heads(dims):
    indptr = torch.tensor([0, 90, 180, 600], dtype=torch.int32, device="cuda")
    q, k, v = random(600, 8, dims[0]), random(600, 4, dims[0], seed=1), random(600, 4, dims[1], seed=2)
    out = []
    for backend in ("hopper", "reference"):
        ragged = BatchPrefillWithRaggedKVCacheWrapper(backend=backend)
        ragged.plan(indptr, indptr, 8, 4, *dims, causal=True)
        out.append(ragged.run_return_lse(q, k, v))
    close(*out, torch.float16)


@pytest.mark.parametrize("group", [1, 2, 3, 5, 7, 8, 16, 64, 71])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_groups_of_any_size(group, dtype):
    step = Step([1, 2, 40, 200, 0, 33], [900, 2, 40, 777, 50, 12], heads=(2 * group, 2), dim=128, dtype=dtype)
    step.check(causal=True)
    step.check(window_left=33)


@pytest.mark.parametrize("dims", [(64, 64), (128, 128), (192, 128), (256, 256)])
@pytest.mark.parametrize("page_size", [1, 16])
def test_rows_around_the_sizes_of_tiles(dims, page_size, kernel):
    if kernel == "cutlass" and dims != (128, 128):
        pytest.skip("the same code outside the products, and seconds to compile")
    rows = [15, 16, 17, 31, 63, 64, 65, 128, 129, 1]
    kv_lens = [1500, 16, 700, 31, 5000, 64, 1000, 128, 3000, 9000]
    step = Step(rows, kv_lens, heads=(2, 2), dim=dims[0], dim_v=dims[1], page_size=page_size)
    for options in ({"causal": True}, {"window_left": 50}):
        close(step.run(kernel, **options), step.reference(**options), step.dtype)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_random_batches(kernel, data):
    batch = data.draw(st.integers(1, 10))
    kv_heads, group = data.draw(st.sampled_from([1, 2, 3, 8])), data.draw(st.integers(1, 9))
    step = Step(
        [data.draw(st.sampled_from([0, 1, 1, 2, 4, 7, 16, 32, 64, 129, 500])) for _ in range(batch)],
        [data.draw(st.sampled_from([0, 1, 100, 128, 640, 3000])) + data.draw(st.integers(0, 3)) for _ in range(batch)],
        heads=(kv_heads * group, kv_heads),
        dim=data.draw(st.sampled_from([64, 128])),
        # The same code copies for both; a kernel on CuTe takes seconds to compile.
        page_size=data.draw(st.sampled_from([1, 16, 32, 64, 128] if kernel == "hopper" else [16])),
        dtype=data.draw(st.sampled_from([torch.float16, torch.bfloat16])),
        seed=data.draw(st.integers(0, 1000)),
    )
    options = data.draw(options_of_plans([-1, -1, 0, 200]))
    close(step.run(kernel, **options), step.reference(**options), step.dtype)


@pytest.mark.parametrize("dtype_o", [torch.float16, torch.bfloat16, torch.float32])
def test_outputs_of_other_types(dtype_o, kernel):
    step = Step([300, 1], [700, 9000], dim=128, dtype=torch.bfloat16)
    got = step.run(kernel, causal=True, dtype_o=dtype_o)
    assert got[0].dtype == dtype_o
    close(got, step.reference(causal=True), torch.bfloat16)


def every_tile(step, keys=1500):
    """Logits that differ by `step` from tile to tile of 128 keys."""
    return torch.arange(keys, device="cuda") // 128 * step


LARGEST = {
    "grow": lambda: torch.linspace(-40, 400, 1500, device="cuda"),
    "shrink": lambda: torch.linspace(400, -40, 1500, device="cuda"),
    "grow a little": lambda: every_tile(0.7),
    "grow by some more than is let pass": lambda: every_tile(9.0),
    "grow beyond what weights can be": lambda: every_tile(150.0),
    "go up and down": lambda: every_tile(1) % 2 * 200 - 100,
    "one key in a tile": lambda: every_tile(20) * (torch.arange(1500, device="cuda") % 128 == 77),
}


@pytest.mark.parametrize("largest", LARGEST)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window_left": 300}, {"logits_soft_cap": 60.0}], ids=str)
def test_largest_logits_that_differ_from_tile_to_tile(largest, dtype, options, kernel):
    """Weights are made relative to tiles before, and made again where that is too little."""
    q, k, v = (x.to(dtype) for x in (random(700, 2, 64), random(1500, 2, 64, seed=1), random(1500, 2, 64, seed=2)))
    q[..., 0], k[..., 0] = 8.0, LARGEST[largest]()[:, None].to(dtype)  # and sm_scale is 1/8
    got, want = (
        single_prefill_with_kv_cache_return_lse(q, k, v, backend=name, **options) for name in (kernel, "reference")
    )
    close(got, want, dtype)


def test_rows_of_a_neighbour_are_not_taken(kernel):
    indptr = torch.tensor([0, 90, 180, 300], dtype=torch.int32, device="cuda")
    q, k, v = random(300, 4, 64), random(300, 2, 64, seed=1), random(300, 2, 64, seed=2)
    k[90:180], v[90:180] = torch.nan, torch.inf
    out = {}
    for backend in (kernel, "reference"):
        ragged = BatchPrefillWithRaggedKVCacheWrapper(backend=backend)
        ragged.plan(indptr, indptr, 4, 2, 64, causal=True)
        out[backend] = ragged.run_return_lse(q, k, v)
    for rows in (slice(0, 90), slice(180, 300)):
        close(*((x[0][rows], x[1][rows]) for x in out.values()), torch.float16)


def test_keys_and_values_that_are_expanded(kernel):
    q, k, v = random(150, 8, 128), random(400, 1, 128, seed=1), random(400, 1, 128, seed=2)
    few = k.expand(400, 2, 128), v.expand(400, 2, 128)
    got, want = (
        single_prefill_with_kv_cache_return_lse(q, *few, causal=True, backend=name) for name in (kernel, "reference")
    )
    close(got, want, torch.float16)
