"""`backend="cutlass"` without a GPU: what it says where the headers are missing, and where CuTe looks for operands."""

import re

import pytest
import torch
from paged_steps import why_no_cutlass_headers

from warploom.attention.attention import ATTENTION
from warploom.attention.backends.cuda.variant_source import variant_source
from warploom.attention.backends.cutlass.attention import LIBRARIES, cutlass_spec
from warploom.attention.backends.hopper.attention import hopper_spec
from warploom.attention.problems.attention import AttentionProblem
from warploom.core.errors import CompileError, UnsupportedError
from warploom.core.jit import HeaderLibrary, KernelSpec, compile_spec

WHY_NO_HEADERS = why_no_cutlass_headers()


def request(arch=90, phase="prefill", dtype=torch.bfloat16, dim=128, **options):
    return AttentionProblem(
        device_type="cuda", arch=arch, device_name="Test GPU", phase=phase, kv_source="paged", dtype_q=dtype,
        dtype_kv=dtype, dtype_o=dtype, num_qo_heads=8, num_kv_heads=2, head_dim_qk=dim, head_dim_vo=dim, page_size=16,
        sm_count=132, **options,
    )  # fmt: skip


def test_refuses_on_a_gpu_without_headers_and_says_what_to_install(monkeypatch):
    monkeypatch.setattr(HeaderLibrary, "find", lambda library: None)
    install = r"needs the headers of CUTLASS 4: pip install 'warploom-attention\[cutlass\]'"
    assert re.search(rf"cutlass +no: {install}", str(ATTENTION.explain(request(), "cutlass")))
    spec = cutlass_spec(hopper_spec(torch.bfloat16, torch.bfloat16, 128, 128, 16, variant_source(())))
    with pytest.raises(CompileError, match=install):
        compile_spec(spec, "sm_90a")


@pytest.mark.parametrize(
    ("problem", "why"),
    [
        (request(arch=80), "needs sm_90"),
        (request(arch=100), "not of sm_100"),
        (request(dim=256), "takes heads of"),
        (request(dtype=torch.float32), "takes queries of torch.float16, torch.bfloat16"),
        (request(pos_encoding="ROPE_LLAMA"), "does not rotate"),
    ],
)
def test_refuses_what_its_kernel_does_not_take(problem, why):
    with pytest.raises(UnsupportedError, match=why):
        ATTENTION.select(problem, "cutlass")


@pytest.mark.skipif(bool(WHY_NO_HEADERS), reason=WHY_NO_HEADERS)
@pytest.mark.parametrize("phase", ["decode", "prefill", "mixed"])
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_serves_every_phase_by_name_and_none_by_itself(phase, dim, dtype):
    problem = request(phase=phase, dim=dim, dtype=dtype)
    assert ATTENTION.select(problem, "cutlass").name == "cutlass"
    assert ATTENTION.select(problem).name != "cutlass"


# In shared memory: where TMA puts an element, with its exchange of pieces of 16 bytes in rows of 128. In registers: where
# SoftmaxRows has it.
LAYOUTS = """
struct Shape {
  using Query = @query@;
  static constexpr int kTileKeys = 128, kHeadDim = @dim@, kValueDim = @dim@;
};
using Products = warploom::attention::CuteProducts<Shape>;

constexpr int place(int rows, int row, int column) {
  return column / 64 * rows * 128 + row * 128 + ((column % 64 / 8 ^ row % 8) * 16) + column % 8 * 2;
}

template <class Layout, bool kColumnsFirst = false>
constexpr bool agrees(int rows) {
  const decltype(cute::as_position_independent_swizzle_layout(Layout{})) elements;
  for (int row = 0; row < rows; ++row) {
    for (int column = row % 3; column < @dim@; column += 5) {
      const int at = kColumnsFirst ? elements(column, row) : elements(row, column);
      if (at * 2 != place(rows, row, column)) return false;
    }
  }
  return true;
}
static_assert(agrees<Products::QueryLayout>(64), "queries");
static_assert(agrees<Products::KeyLayout>(128), "keys");
static_assert(agrees<Products::ValueLayout, true>(128), "values");

// Which of 64 rows and so many columns a thread's values are.
template <class Layout>
constexpr bool lanes_agree(int columns) {
  for (int thread = 0; thread < 128; thread += 5) {
    for (int value = 0; value < columns / 2; ++value) {
      const int row = thread / 32 * 16 + thread % 32 / 4 + value / 2 % 2 * 8;
      const int column = value / 4 * 8 + thread % 4 * 2 + value % 2;
      if (Layout{}(thread, value) != row + 64 * column) return false;
    }
  }
  return true;
}
static_assert(lanes_agree<Products::KeyProduct::AtomLayoutC_TV>(128), "logits");
static_assert(lanes_agree<Products::ValueProduct::AtomLayoutA_TV>(16), "weights of a step");
static_assert(lanes_agree<Products::ValueProduct::AtomLayoutC_TV>(@dim@), "outputs");

template <class Config>
__global__ void nothing() {}
"""


@pytest.mark.skipif(bool(WHY_NO_HEADERS), reason=WHY_NO_HEADERS)
@pytest.mark.parametrize(("query", "dim"), [("__nv_bfloat16", 128), ("__half", 64)])
def test_cute_has_operands_and_sums_where_others_put_and_take_them(query, dim):
    spec = KernelSpec(
        family="attention",
        header="warploom/attention/attention_cutlass.cuh",
        kernel="nothing",
        prelude=LAYOUTS.replace("@query@", query).replace("@dim@", str(dim)),
        config={},
        libraries=LIBRARIES,
    )
    compile_spec(spec, "sm_90a")
