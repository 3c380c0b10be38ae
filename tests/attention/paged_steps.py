"""Steps of a batch over a paged cache on the GPU, and what their results have to be close to."""

import contextlib

import torch
from hypothesis import strategies as st

from warploom.attention import (
    BatchAttention,
    BatchDecodeWithPagedKVCacheWrapper,
    BatchPrefillWithPagedKVCacheWrapper,
)
from warploom.attention.backends.cutlass.attention import LIBRARIES
from warploom.core.errors import UnsupportedError
from warploom.core.testing import assert_close, why_no_gpu

# Softmax weights are rounded to 16 bits before the second product, and the output once more.
TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 3e-2}


def why_no_cutlass_headers():
    """What to install before the kernel of `backend="cutlass"` compiles; "" when it does."""
    return "; ".join(why for library in LIBRARIES if (why := library.why_missing()))


def why_no_kernel(backend):
    """Why this machine cannot run the kernel of a backend; "" when it can."""
    if backend == "cuda":
        return why_no_gpu(min_arch=80)
    return why_no_gpu(arch=90) or (why_no_cutlass_headers() if backend == "cutlass" else "")


def random(*shape, dtype=torch.float16, seed=0):
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(shape, generator=generator, device="cuda", dtype=torch.float32).to(dtype)


def close(got, want, dtype):
    assert_close(got[0], want[0], rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype], what="out")
    assert_close(got[1], want[1], rtol=1e-3, atol=5e-3, what="lse")


def options_of_plans(windows):
    """What plans may ask of the logits, with one of these windows: for Hypothesis."""
    return st.fixed_dictionaries(
        {
            "causal": st.booleans(),
            "window_left": st.sampled_from(windows),
            "logits_soft_cap": st.sampled_from([None, None, 5.0]),
            "sm_scale": st.sampled_from([None, None, -0.2, 0.0]),
        }
    )


class Step:
    """Requests over a paged cache on the GPU, with every page somewhere else."""

    def __init__(
        self,
        qo_lens,
        kv_lens,
        *,
        heads=(8, 2),
        dim=64,
        dim_v=None,
        page_size=16,
        dtype=torch.float16,
        dtype_kv=None,
        seed=0,
    ):
        self.qo_lens, self.kv_lens, self.heads, self.page_size = qo_lens, kv_lens, heads, page_size
        self.dims = dim, dim_v or dim
        self.dtype = dtype
        pages = [-(-n // page_size) for n in kv_lens]
        total = max(sum(pages), 1)
        self.dtype_kv = dtype_kv or dtype
        shape = total, page_size, heads[1]
        self.cache = tuple(random(*shape, d, dtype=self.dtype_kv, seed=seed + i) for i, d in enumerate(self.dims, 1))
        self.q = random(sum(qo_lens), heads[0], dim, dtype=dtype, seed=seed)
        order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
        table = torch.zeros(len(kv_lens), max(pages, default=1) or 1, dtype=torch.int32)
        for request, (start, count) in enumerate(zip([sum(pages[:i]) for i in range(len(pages))], pages, strict=True)):
            table[request, :count] = order[start : start + count]
        self.table = table.cuda()
        self.poison()

    def poison(self):
        """Rows of the cache that are no request's are NaN: whatever takes them shows."""
        unused = torch.ones(self.cache[0].shape[:2], dtype=torch.bool)
        for request, kv_len in enumerate(self.kv_lens):
            rows = torch.arange(kv_len)
            unused[self.table[request].cpu()[rows // self.page_size].long(), rows % self.page_size] = False
        nan = torch.tensor(torch.nan).to(self.dtype_kv)
        for x in self.cache:
            x.view(torch.uint8 if x.element_size() == 1 else torch.int16)[unused.cuda()] = nan.view(
                torch.uint8 if x.element_size() == 1 else torch.int16
            ).cuda()

    def plan(self, attention, dtype=None, **options):
        indptr = torch.tensor([0, *self.qo_lens]).cumsum(0).int().cuda()
        lens = torch.tensor(self.kv_lens, dtype=torch.int32, device="cuda")
        attention.plan(
            indptr, lens, self.table, *self.heads, *self.dims, dtype_q=dtype or self.dtype,
            dtype_kv=dtype or self.dtype_kv, page_size=self.page_size, **options,
        )  # fmt: skip
        return attention

    def plan_decode(self, backend, dtype=None, **options):
        """For requests of as many queries each, which plans know then."""
        decode = BatchDecodeWithPagedKVCacheWrapper(backend=backend)
        lens = torch.tensor(self.kv_lens, dtype=torch.int32, device="cuda")
        decode.plan(
            None, None, None, *self.heads, self.dims[0], self.page_size, q_data_type=dtype or self.dtype,
            kv_data_type=dtype or self.dtype_kv, head_dim_vo=self.dims[1], block_tables=self.table, seq_lens=lens,
            q_len_per_req=self.qo_lens[0], **options,
        )  # fmt: skip
        return decode

    def packed_table(self):
        """Offsets into all pages, these, and what the last ones hold, for the lengths that the step has now."""
        lens = torch.tensor(self.kv_lens, dtype=torch.int32, device=self.table.device)
        counts = -(-lens // self.page_size)
        packed = torch.cat([self.table[i, : int(n)] for i, n in enumerate(counts)])
        return torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int(), packed, (lens - 1) % self.page_size + 1

    def run(self, backend="cuda", **options):
        return self.plan(BatchAttention(backend=backend), **options).run(self.q, self.cache)

    def reference(self, **options):
        attention = self.plan(BatchAttention(backend="reference"), dtype=torch.float64, **options)
        return attention.run(self.q.double(), tuple(x.double() for x in self.cache))

    def check(self, **options):
        """Every kernel that takes the problem."""
        want = self.reference(**options)
        close(self.run("cuda", **options), want, self.dtype)
        with contextlib.suppress(UnsupportedError):
            close(self.run("hopper", **options), want, self.dtype)


def replays(step, backend, **options):
    """Captures a step of four decodes of up to 2000 keys, gives it other lengths, and yields what replays for them give."""
    requests, pages = step.table.shape
    indptr = torch.arange(requests + 1, dtype=torch.int32, device="cuda")
    prefill = BatchPrefillWithPagedKVCacheWrapper(use_cuda_graph=True, backend=backend)

    def plan():
        kv_indptr, packed, last = step.packed_table()
        packed = torch.nn.functional.pad(packed, (0, requests * pages - len(packed)))
        prefill.plan(indptr, kv_indptr, packed, last, *step.heads, step.dims[0], step.page_size, **options)

    plan()
    prefill.run_return_lse(step.q, step.cache)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = prefill.run_return_lse(step.q, step.cache)
    for kv_lens in ([300, 2000, 64, 5], [1, 1, 1, 1], [16, 1999, 3, 5]):
        step.kv_lens = kv_lens
        plan()
        graph.replay()
        yield result
