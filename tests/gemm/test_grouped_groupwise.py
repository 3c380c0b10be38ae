"""Grouped products with block scales against one float64 product for each group."""

import pytest
import torch
from gemm_oracle import E4M3, elementwise, random_fp8, random_scales
from hypothesis import given, settings
from hypothesis import strategies as st

from warploom.core.errors import ArgumentError
from warploom.core.testing import assert_close, cases, indptr_of, ragged_lengths, random_strided
from warploom.gemm import group_gemm_fp8_nt_groupwise


def check(lengths, n, k, granularity, mode, seed=0, adversarial=False):
    gm, gn, gk = granularity
    groups, rows, blocks = len(lengths), sum(lengths), -(-k // gk)
    a, b = random_strided((rows, k), E4M3, seed=seed, padding=1), random_fp8((groups, n, k), seed=seed + 1)
    a_scale = random_scales((-(-rows // gm), blocks), seed + 2, adversarial)
    b_scale = random_scales((groups, -(-n // gn), blocks), seed + 3)
    stored = (a_scale.mT, b_scale.mT) if mode == "MN" else (a_scale, b_scale)
    indptr = indptr_of(lengths)
    out = group_gemm_fp8_nt_groupwise(a, b, *stored, indptr, granularity, mode, out_dtype=torch.float32)
    left = a.double() * elementwise(a_scale, a.shape, (gm, gk))
    parts = [torch.zeros(0, n, dtype=torch.float64)]
    for group, (start, end) in enumerate(zip(indptr.tolist(), indptr.tolist()[1:], strict=False)):
        right = b[group].double() * elementwise(b_scale[group], (n, k), (gn, gk))
        parts.append(left[start:end] @ right.T)
    assert_close(out, torch.cat(parts))


@pytest.mark.parametrize(
    *cases(
        lengths=[[], [0], [7], [0, 130, 0, 1], [3, 5, 0]],
        k=[0, 128, 200],
        granularity=[(1, 128, 128), (128, 128, 128), (1, 1, 128), (2, 3, 32)],
        mode=["MN", "K", None],
    )
)
def test_groups(case):
    check(case.lengths, 136, case.k, case.granularity, case.mode)


@settings(max_examples=20)
@given(st.integers(1, 12), st.integers(0, 40), st.integers(1, 50), st.integers(0, 300), st.integers(0, 999))
def test_any_groups_and_scales(groups, longest, n, k, seed):
    check(ragged_lengths(groups, longest, seed).tolist(), n, k, (1, 128, 128), "MN", seed, adversarial=True)


@pytest.mark.parametrize("mode", ["MN", "K"])
@pytest.mark.parametrize("indices", [[4, 4, 0, 2, 1, 0], [3], []])
def test_rows_that_indices_name(indices, mode):
    a, b = random_fp8((5, 256)), random_fp8((2, 136, 256), seed=1)
    a_scale, b_scale = random_scales((5, 2), 2), random_scales((2, 2, 2), 3)
    stored = (a_scale.mT, b_scale.mT) if mode == "MN" else (a_scale, b_scale)
    rows = torch.tensor(indices, dtype=torch.int32)
    sizes = [len(indices) // 2, len(indices) - len(indices) // 2]
    arguments = (a, b, *stored, indptr_of(sizes), (1, 128, 128), mode)
    out = group_gemm_fp8_nt_groupwise(*arguments, out_dtype=torch.float32, row_indices=rows)
    left = (a.double() * elementwise(a_scale, a.shape, (1, 128)))[rows.long()]
    right = [b[group].double() * elementwise(b_scale[group], (136, 256), (128, 128)) for group in range(2)]
    expected = torch.cat([left[: sizes[0]] @ right[0].T, left[sizes[0] :] @ right[1].T])
    assert_close(out, expected)


def test_rows_that_indices_name_have_their_own_scales():
    a, b, scales = random_fp8((5, 256)), random_fp8((1, 136, 256)), (torch.ones(2, 1), torch.ones(1, 2, 2))
    with pytest.raises(ArgumentError, match=r"`scale_granularity_mnk` must be \(1, gn, gk\) with `row_indices`"):
        group_gemm_fp8_nt_groupwise(
            a, b, *scales, indptr_of([2]), (5, 128, 128), row_indices=torch.zeros(2, dtype=torch.int32)
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"m_indptr": torch.tensor([0, 4, 4])}, r"`m_indptr` must be of shape \(2,\)"),
        (
            {"a_scale": torch.ones(4, 2)},
            r"`a_scale` must be of shape \(2, 4\).*scale_major_mode='MN' stores \[k_blocks",
        ),
        ({"b_scale": torch.ones(1, 1, 2)}, r"`b_scale` must be of shape \(1, 2, 1\)"),
    ],
)
def test_wrong_arguments(arguments, message):
    call = {
        "a": random_fp8((4, 256)),
        "b": random_fp8((1, 8, 256)),
        "a_scale": torch.ones(2, 4),
        "b_scale": torch.ones(1, 2, 1),
        "m_indptr": torch.tensor([0, 4]),
    }
    with pytest.raises(ArgumentError, match=message):
        group_gemm_fp8_nt_groupwise(**{**call, **arguments})
