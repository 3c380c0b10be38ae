"""The kernel of `mask.cuh`, against the reference."""

import pytest
import torch

from warploom.attention import packbits, segment_packbits
from warploom.attention.mask import PACKBITS
from warploom.core.testing import cases, poison_like

pytestmark = pytest.mark.gpu(min_arch=80)


@pytest.mark.parametrize(
    *cases(
        n=[0, 1, 7, 8, 9, 100_003], bitorder=["big", "little"],
        dtype=[torch.bool, torch.uint8, torch.int64, torch.float32], step=[1, 3],
    )
)  # fmt: skip
def test_packbits(case):
    x = torch.randint(0, 2, (case.n * case.step,), device="cuda").to(case.dtype)[:: case.step]
    x = x * 200 if case.dtype == torch.uint8 else x
    assert torch.equal(
        packbits(x, case.bitorder, backend="cuda"), packbits(x.cpu(), case.bitorder, backend="reference").cuda()
    )


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("bitorder", ["big", "little"])
@pytest.mark.parametrize("lens", [[], [0, 0], [5, 0, 8, 1, 0], [1000, 3, 77_777, 16]])
def test_segments(lens, bitorder, index_dtype):
    x = torch.randint(0, 2, (sum(lens),), device="cuda").bool()
    indptr = torch.tensor([0, *lens]).cumsum(0).to(index_dtype).cuda()
    want = segment_packbits(x.cpu(), indptr.cpu(), bitorder)
    got = segment_packbits(x, indptr, bitorder, backend="cuda")
    assert all(torch.equal(a.cpu(), b) for a, b in zip(got, want, strict=True))
    size = (sum(lens) + 7 * len(lens)) // 8 + 5
    out = poison_like(torch.empty(size, dtype=torch.uint8, device="cuda")), torch.empty(len(lens) + 1).int().cuda()
    segment_packbits(x, indptr, bitorder, out=out, backend="cuda")
    assert torch.equal(out[0][: len(want[0])].cpu(), want[0])
    assert not out[0][len(want[0]) :].any()
    assert torch.equal(out[1].cpu(), want[1])


def test_auto_takes_the_kernel():
    packbits(torch.ones(9, device="cuda"))
    assert PACKBITS.last.name == "cuda"
