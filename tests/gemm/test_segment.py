"""Segment products against one float64 product for each segment."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from warploom.core.errors import ArgumentError
from warploom.core.settings import settings as warploom_settings
from warploom.core.testing import assert_close, cases, indptr_of, poison_like, random_normal
from warploom.gemm import SegmentGEMMWrapper


def expected_rows(x, weights, lengths, indices):
    parts, start = [x.new_zeros((0, weights.shape[2]), dtype=torch.float64)], 0
    for length, index in zip(lengths, indices, strict=True):
        parts.append(x[start : start + length].double() @ weights[index].double())
        start += length
    return torch.cat(parts)


@pytest.mark.parametrize(
    *cases(
        lengths=[[], [0], [3, 0, 2]],
        column_major=[False, True],
        indexed=[False, True],
        as_lengths=[False, True],
        own=[False, True],
        dtype=[torch.bfloat16, torch.float16, torch.float32],
    )
)
def test_segments(case):
    batch, rows = len(case.lengths), sum(case.lengths)
    indices = [5, 5, 1][:batch] if case.indexed else list(range(batch))
    weights = random_normal((6, 24, 16), case.dtype, seed=1)  # [num_weights, d_in, d_out]
    x = random_normal((rows, 24), case.dtype, seed=2)
    lengths = torch.tensor(case.lengths, dtype=torch.int64)
    segments = {"seg_lens": lengths} if case.as_lengths else {"seg_indptr": indptr_of(case.lengths)}
    out = poison_like(x.new_empty((rows, 16))) if case.own else None
    got = SegmentGEMMWrapper(torch.empty(16, dtype=torch.uint8)).run(
        x,
        weights.mT.contiguous() if case.column_major else weights,
        batch,
        case.column_major,
        out=out,
        weight_indices=torch.tensor(indices, dtype=torch.int32) if case.indexed else None,
        **segments,
    )
    assert out is None or got is out
    assert_close(got, expected_rows(x, weights, case.lengths, indices))


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3)), max_size=8), st.integers(1, 64), st.integers(1, 64))
def test_shrink_and_expand(segments, d_in, d_out):
    lengths, indices = [length for length, _ in segments], [index for _, index in segments]
    weights = random_normal((4, d_in, d_out), torch.bfloat16, seed=1)
    x = random_normal((sum(lengths), d_in), torch.bfloat16, seed=2)
    wrapper = SegmentGEMMWrapper()
    got = wrapper.run(
        x, weights, len(segments), False, seg_indptr=indptr_of(lengths), weight_indices=torch.tensor(indices).long()
    )
    assert_close(got, expected_rows(x, weights, lengths, indices))


def call(**arguments):
    x, weights = torch.zeros(5, 8).bfloat16(), torch.zeros(2, 8, 4).bfloat16()
    return SegmentGEMMWrapper().run(
        **{"x": x, "weights": weights, "batch_size": 2, "weight_column_major": False, **arguments}
    )


OFFSETS = torch.tensor([0, 2, 5])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "`seg_indptr` must be given, or `seg_lens`, but not both, got neither"),
        ({"seg_lens": OFFSETS[1:], "seg_indptr": OFFSETS}, "but not both, got both"),
        ({"seg_lens": OFFSETS}, "`seg_lens` must be of batch_size = 2"),
        ({"seg_indptr": OFFSETS[1:]}, r"`seg_indptr` must be of batch_size\+1 = 3"),
        ({"seg_indptr": OFFSETS, "weight_indices": OFFSETS}, "`weight_indices` must be of batch_size = 2"),
        ({"seg_indptr": OFFSETS, "weight_column_major": True}, "`weights` must be of d_in = 8"),
        ({"seg_indptr": OFFSETS, "weights": torch.zeros(1, 8, 4).bfloat16()}, "`weights` must be at least 2"),
        ({"seg_indptr": OFFSETS, "weights": torch.zeros(2, 8, 4)}, "`weights` must be of dtype bfloat16"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        call(**arguments)


def test_debug_checks_find_wrong_indices_and_offsets():
    with warploom_settings.override(debug_checks=True):
        with pytest.raises(ArgumentError, match="`weight_indices` must be at least 0 and below 2 everywhere, got 2"):
            call(seg_indptr=OFFSETS, weight_indices=torch.tensor([0, 2]))
        with pytest.raises(ArgumentError, match="`seg_indptr` must be offsets"):
            call(seg_indptr=torch.tensor([0, 6, 5]))


def test_needs_no_workspace():
    assert SegmentGEMMWrapper.workspace_size() == 0
