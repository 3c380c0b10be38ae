"""Workspace layouts: disjoint aligned views of the caller's bytes, and errors that give both sizes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from warploom.core.errors import ArgumentError
from warploom.core.workspace import ALIGNMENT, WorkspaceLayout, allocate

DTYPES = [torch.uint8, torch.int32, torch.float32, torch.bfloat16, torch.int64]
FIELDS = st.lists(st.tuples(st.lists(st.integers(0, 9), max_size=3), st.sampled_from(DTYPES)), max_size=8)


def aligned_buffer(nbytes: int) -> torch.Tensor:
    buffer = torch.zeros(nbytes + ALIGNMENT, dtype=torch.uint8)
    start = -buffer.data_ptr() % ALIGNMENT
    return buffer[start : start + nbytes]


@settings(max_examples=60, deadline=None)
@given(fields=FIELDS, own=st.booleans())
def test_views_are_aligned_disjoint_and_inside_the_buffer(fields, own):
    layout = WorkspaceLayout()
    for i, (shape, dtype) in enumerate(fields):
        layout.add(f"t{i}", shape, dtype)
    buffer = None if own else aligned_buffer(layout.nbytes)
    views = layout.bind(buffer, "cpu")
    assert list(views) == list(layout.names)
    end = 0 if buffer is None else buffer.data_ptr()
    for i, (shape, dtype) in enumerate(fields):
        view = views[f"t{i}"]
        assert (view.shape, view.dtype) == (tuple(shape), dtype)
        if view.numel():
            assert view.data_ptr() % ALIGNMENT == 0
            assert view.data_ptr() >= end
            end = view.data_ptr() + view.numel() * dtype.itemsize
    if buffer is not None:
        assert end <= buffer.data_ptr() + buffer.numel()


def test_writes_through_the_views_do_not_touch_neighbours():
    layout = WorkspaceLayout().add("a", 3, torch.int32).add("b", (2, 2), torch.float32).add("c", (), torch.int64)
    views = layout.bind(aligned_buffer(layout.nbytes), "cpu")
    for name, value in (("a", 7), ("b", 1.5), ("c", 9)):
        views[name].fill_(value)
    assert views["a"].tolist() == [7] * 3
    assert views["b"].tolist() == [[1.5] * 2] * 2
    assert views["c"].item() == 9


def test_two_layouts_in_one_buffer():
    first = WorkspaceLayout().add("a", 3, torch.int32).add("b", 5, torch.float32)
    second = WorkspaceLayout().add("c", 7, torch.int64)
    buffer = allocate(first.nbytes + second.nbytes, torch.device("cpu"))
    views = {**first.bind(buffer, "cpu"), **second.bind(buffer, "cpu", offset=first.nbytes)}
    for number, view in enumerate(views.values()):
        view.fill_(number)
    assert [view.tolist() for view in views.values()] == [[0] * 3, [1.0] * 5, [2] * 7]
    with pytest.raises(ArgumentError, match="at least 768 bytes"):
        second.bind(buffer[:-256], "cpu", offset=first.nbytes)


def test_addresses_are_those_of_the_views():
    layout = WorkspaceLayout().add("a", 3, torch.int32).add("b", (2, 2), torch.float32)
    workspace = layout.at(allocate(layout.nbytes + 256, torch.device("cpu")), 256)
    assert {name: workspace.address(name) for name in workspace} == {
        name: view.data_ptr() for name, view in workspace.items()
    }
    assert len(workspace) == 2


def test_an_empty_layout_takes_no_bytes():
    assert WorkspaceLayout().nbytes == 0
    assert WorkspaceLayout().bind(None, "cpu") == {}
    assert WorkspaceLayout().bind(torch.empty(0, dtype=torch.uint8), "cpu") == {}


def test_too_small_names_required_and_given_bytes():
    layout = WorkspaceLayout("BatchAttention.plan").add("lse", 1000, torch.float32)
    with pytest.raises(
        ArgumentError, match=r"BatchAttention\.plan: `workspace` must be at least 4096 bytes.*got 256 bytes"
    ):
        layout.bind(aligned_buffer(256), "cpu")


@pytest.mark.parametrize(
    ("buffer", "message"),
    [
        (torch.zeros(4096, dtype=torch.float32), "must be a uint8 tensor, got torch.float32"),
        ([1, 2], "must be a uint8 tensor, got list"),
        (torch.zeros(2, 4096, dtype=torch.uint8), "must be 1-D and contiguous"),
        (torch.zeros(8192, dtype=torch.uint8)[::2], "must be 1-D and contiguous"),
        (aligned_buffer(4096)[1:], "must be aligned to 256 bytes, got an address 1 bytes past"),
        (torch.empty(4096, dtype=torch.uint8, device="meta"), "must be on cpu, got meta"),
    ],
)
def test_unusable_buffers_are_refused(buffer, message):
    with pytest.raises(ArgumentError, match=message):
        WorkspaceLayout().add("x", 4, torch.int32).bind(buffer, "cpu")


def test_names_and_shapes_are_checked():
    layout = WorkspaceLayout().add("x", 4, torch.int32)
    with pytest.raises(ArgumentError, match="already has a tensor named 'x'"):
        layout.add("x", 4, torch.int32)
    with pytest.raises(ArgumentError, match="without negative sizes"):
        layout.add("y", (2, -1), torch.int32)
