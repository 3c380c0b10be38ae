"""The division of work: every tile of keys of every item once, in equal shares."""

import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from warploom.attention import BatchAttention
from warploom.attention.schedule import WorkSchedule, WorkShape
from warploom.attention.schedule_chart import draw_schedule
from warploom.core.errors import UnsupportedError

shapes = st.builds(
    WorkShape,
    num_kv_heads=st.sampled_from([1, 2, 6, 8]),
    group_size=st.integers(1, 9),
    lanes=st.sampled_from([1, 2]),
    groups=st.integers(1, 140),
    causal=st.booleans(),
    window_left=st.sampled_from([-1, 0, 100]),
    wide_rows=st.sampled_from([16, 64, 128]),
    tile_keys=st.sampled_from([64, 128]),
    item_units=st.integers(1, 4),
    narrow_units=st.integers(1, 3),
    wide_units=st.integers(1, 4),
    whole_items=st.booleans(),
    min_chunk=st.integers(1, 7),
).filter(lambda shape: shape.num_kv_heads % shape.lanes == 0)
lengths = st.lists(st.tuples(st.integers(0, 70), st.integers(0, 700)), max_size=12)


def visible_tiles(qo_len, kv_len, first, last, shape):
    """Tiles of keys that some query from `first` to `last` sees, by looking at each of them."""
    queries, keys = np.arange(first, last + 1)[:, None], np.arange(kv_len)[None]
    position = queries + kv_len - qo_len
    visible = np.ones((len(queries), kv_len), bool)
    if shape.causal:
        visible &= keys <= position
    if shape.window_left >= 0:
        visible &= keys >= position - shape.window_left
    seen = np.flatnonzero(visible.any(0))
    return math.ceil((seen[-1] + 1) / shape.tile_keys) - seen[0] // shape.tile_keys if len(seen) else 0


@settings(deadline=None)
@given(lengths=lengths, shape=shapes)
def test_every_unit_belongs_to_one_block(lengths, shape):
    schedule = WorkSchedule.of([m for m, _ in lengths], [n for _, n in lengths], shape)
    covered = [np.zeros(units, int) for units in schedule.units]
    for group in range(shape.groups):
        for item, begin, end in schedule.shares(group):
            covered[item][begin:end] += 1
            assert not shape.whole_items or (begin, end) == (0, schedule.units[item])
    assert all((each == 1).all() for each in covered)
    if not shape.whole_items and schedule.total:
        longest = np.diff(schedule.begins).max()
        assert longest == min(max(math.ceil(schedule.total / shape.groups), shape.min_chunk), schedule.total)


@settings(deadline=None)
@given(lengths=lengths, shape=shapes)
def test_items_are_the_visible_tiles_of_keys(lengths, shape):
    schedule = WorkSchedule.of([m for m, _ in lengths], [n for _, n in lengths], shape)
    heads = shape.num_kv_heads // shape.lanes
    rows = sum(m for m, _ in lengths) * shape.group_size * heads
    items = zip(schedule.requests, schedule.tiles, schedule.units, strict=True)
    for request, tile, units in items:
        qo_len, kv_len = lengths[request]
        is_wide = qo_len * shape.group_size > 16
        tile_rows = shape.wide_rows if is_wide else 16
        tile_units = shape.wide_units if is_wide else shape.narrow_units
        first, end = tile * tile_rows, min((tile + 1) * tile_rows, qo_len * shape.group_size)
        rows -= end - first
        tiles = visible_tiles(qo_len, kv_len, first // shape.group_size, (end - 1) // shape.group_size, shape)
        # A window may begin after the last key that a causal query sees only if nothing is visible.
        counted = (units - shape.item_units) / tile_units
        assert counted >= tiles
        assert counted == tiles or kv_len < qo_len or shape.window_left >= 0
    assert rows == 0


def test_a_long_request_is_shared():
    shape = WorkShape(num_kv_heads=8, group_size=4, lanes=8, groups=33)
    schedule = WorkSchedule.of([1] * 32, [131072] + [4096] * 31, shape)
    assert schedule.balance == pytest.approx(1.0, abs=0.01)
    long, others = schedule.units[0], schedule.units[1]
    borders = [b for b in schedule.begins[1:-1] if b > long and (b - long) % others > 1]
    assert schedule.shared_items == 1 + len(borders) == 17


@pytest.mark.parametrize("kv_lens", [[3000, 5, 700], []])
def test_a_chart_has_a_bar_for_every_share(kv_lens, tmp_path):
    pytest.importorskip("matplotlib")
    shape = WorkShape(num_kv_heads=2, group_size=4, lanes=2, groups=7)
    schedule = WorkSchedule.of([1] * len(kv_lens), kv_lens, shape)
    path = tmp_path / "schedule.svg"
    draw_schedule(schedule, "decode", path)
    text = path.read_text()
    assert "decode: longest block" in text
    shares = sum(len(list(schedule.shares(group))) for group in range(shape.groups))
    assert text.count("stroke: #ffffff; stroke-width: 0.3") == shares


def test_without_matplotlib_a_chart_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    schedule = WorkSchedule.of([1], [100], WorkShape(num_kv_heads=1, group_size=1, lanes=1, groups=2))
    with pytest.raises(UnsupportedError, match=r"warploom-core\[chart\]"):
        draw_schedule(schedule, "decode", tmp_path / "schedule.svg")


def test_backends_that_do_not_divide_work_cannot_be_drawn(tmp_path):
    attention = BatchAttention(backend="reference")
    tensors = (torch.tensor(x, dtype=torch.int32) for x in ([0, 1], [5], [[0]]))
    attention.plan(*tensors, 2, 1, 64, 64, page_size=16)
    assert attention.explain().work is None
    with pytest.raises(UnsupportedError, match="reference"):
        attention.plot(tmp_path / "schedule.svg")


def test_launches_begin_with_the_tensors_that_change():
    from warploom.attention.backends.cuda import persistent_attention, schedule
    from warploom.attention.backends.cuda.attention_kernel import AttentionParams

    # In the order of `PreparedCall`, then those of the plan.
    tensors = ("q", "k", "v", "out", "lse", *persistent_attention._PLAN_TENSORS)
    assert tuple(AttentionParams._fields)[: len(tensors)] == tensors
    assert tuple(schedule.ScheduleParams._fields)[: len(schedule._TENSORS)] == schedule._TENSORS
