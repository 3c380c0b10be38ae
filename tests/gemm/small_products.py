"""Small products by the Hopper kernel, for compute-sanitizer: ``python small_products.py``."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from gemm_oracle import E4M3, assert_product, random_fp8

from warploom import gemm
from warploom.core.testing import indptr_of, random_normal


def main():
    for m, n in ((3, 72), (70, 200), (150, 264)):
        a, b = (
            random_normal((m, 136), torch.bfloat16, device="cuda"),
            random_normal((n, 136), torch.bfloat16, device="cuda"),
        )
        assert_product(gemm.mm_bf16(a, b.t(), backend="hopper"), a, b)
        assert_product(gemm.mm_bf16(a, b.t().contiguous(), backend="hopper"), a, b)
        x, w = random_fp8((m, 400)).cuda(), random_fp8((n, 400)).cuda()
        assert x.dtype == E4M3
        scales = torch.rand(m, 4, device="cuda"), torch.rand(-(-n // 128), 4, device="cuda")
        assert_product(gemm.gemm_fp8_nt_groupwise(x, w, *scales, backend="hopper"), x, w, *scales, (1, 128, 128))
    lengths = [5, 0, 40, 1]
    a, b = (
        random_normal((46, 64), torch.bfloat16, device="cuda"),
        random_normal((4, 40, 64), torch.bfloat16, device="cuda"),
    )
    out = gemm.grouped_mm_bf16(a, b, indptr_of(lengths, "cuda"), backend="hopper")
    assert_product(out[5:45], a[5:45], b[2])
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
