"""Tuning tables: strict reading with useful messages, and look-up of the nearest measured shape."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from warploom.core import tuning
from warploom.core.errors import ArgumentError
from warploom.core.problem import Problem
from warploom.core.shipped import installed_families

TABLE = """\
schema: 1
gpu: NVIDIA H200*
operators:
  softmax:
    commit: abc1234
    torch: 2.11.0+cu130
    date: 2026-11-21
    rows:
    - at: {batch: 1, dtype: float32, causal: true}
      us: {torch: 20.0, cuda: 8}
    - at: {batch: 64, dtype: float32, causal: true}
      us: {cuda: 30.5, torch: 20.0}
    - at:
        batch: 64
        dtype: bfloat16
        causal: true
      us: {reference: 1.0}
"""


US = "us: {torch: 20.0, cuda: 8}"
ROW = "- at: {batch: 1, dtype: float32, causal: true}\n      " + US


@dataclass(frozen=True, kw_only=True)
class SoftmaxProblem(Problem):
    batch: int
    dtype: torch.dtype = torch.float32
    causal: bool = True
    shape: tuple[int, ...] = field(default=(1,))


@pytest.fixture
def family(tmp_path, monkeypatch):
    """Write tables of a family that the look-up then finds."""
    folder = tmp_path / "tuning"
    folder.mkdir()
    monkeypatch.setattr(tuning, "_folder_of", lambda name: folder if name == "toy" else None)
    tuning.tables_of.cache_clear()

    def write(text: str = TABLE, name: str = "h200.yaml") -> Path:
        (folder / name).write_text(text)
        return folder / name

    yield write
    tuning.tables_of.cache_clear()


def order(problem: Problem, device_name: str = "NVIDIA H200", operator: str = "softmax"):
    hit = tuning.lookup("toy", operator, problem, device_name)
    return hit and hit.order


def test_lookup_gives_the_order_by_time_and_the_line(family):
    family()
    hit = tuning.lookup("toy", "softmax", SoftmaxProblem(batch=1), "NVIDIA H200")
    assert hit == tuning.TuningHit(("cuda", "torch"), "toy/tuning/h200.yaml:9")
    assert TABLE.splitlines()[9 - 1].strip().startswith("- at: {batch: 1")


def test_the_nearest_number_decides_by_ratio(family):
    family()
    assert order(SoftmaxProblem(batch=7)) == ("cuda", "torch")
    assert order(SoftmaxProblem(batch=9)) == ("torch", "cuda")
    assert order(SoftmaxProblem(batch=100_000)) == ("torch", "cuda")
    assert order(SoftmaxProblem(batch=0)) == ("cuda", "torch")


def test_text_and_booleans_must_be_equal(family):
    family()
    assert order(SoftmaxProblem(batch=1, dtype=torch.bfloat16)) == ("reference",)
    assert order(SoftmaxProblem(batch=1, dtype=torch.float16)) is None
    assert order(SoftmaxProblem(batch=1, causal=False)) is None


def test_other_gpus_operators_and_families_are_not_concerned(family):
    family()
    assert order(SoftmaxProblem(batch=1), device_name="NVIDIA H200 NVL") == ("cuda", "torch")
    assert order(SoftmaxProblem(batch=1), device_name="NVIDIA H100") is None
    assert order(SoftmaxProblem(batch=1), operator="top_k") is None
    assert tuning.lookup("elsewhere", "softmax", SoftmaxProblem(batch=1), "NVIDIA H200") is None


def test_a_feature_that_the_problem_lacks_matches_nothing(family):
    family(TABLE.replace("batch: 1,", "rows: 1,"))
    assert order(SoftmaxProblem(batch=1)) == ("torch", "cuda")


def test_files_are_read_once_and_in_the_order_of_their_names(family):
    family()
    family(TABLE.replace("cuda: 8", "cuda: 80"), "a_first.yaml")
    assert order(SoftmaxProblem(batch=1)) == ("torch", "cuda")
    family("broken: [", "a_first.yaml")
    assert order(SoftmaxProblem(batch=1)) == ("torch", "cuda")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("schema: 1", "schema: 2", ":1: `schema` must be 1, the version that this release reads, got 2."),
        ("schema: 1", "schema: true", ":1: `schema` must be an integer, got True."),
        ("commit: abc1234", "comit: abc1234", ":5: `comit` must be one of .* Did you mean commit?"),
        ("commit: abc1234\n    ", "", ":5: `commit` must be given, got nothing."),
        ("commit: abc1234", "commit: 1234", r":5: `commit` must be text (quote it), got 1234."),
        (US, "ms: {torch: 20.0}", ":10: `ms` must be one of at, us"),
        (US, "us: {torch: fast}", ":10: `torch` must be a positive number of microseconds, got 'fast'."),
        (US, "us: {torch: -1}", ":10: `torch` must be a positive number"),
        (US, "us: {torch: .nan}", ":10: `torch` must be a positive number"),
        (US, "us: {}", ":10: `us` must be the time of at least one backend"),
        (US, "us: {torch: 1, torch: 2}", ":10: `torch` must be given once"),
        (
            "{batch: 1, dtype: float32, causal: true}",
            "{batch: [1]}",
            ":9: `batch` must be text, a number, true or false",
        ),
        (ROW, "- 3", ":8: `rows` must be a list of mappings with 'at' and 'us', got 3"),
        ("rows:\n", "rows: 3\n    x:\n", ":8: `rows` must be a list, got 3"),
        ("operators:\n  softmax:", "operators:\n  softmax: 3\n  other:", ":4: `softmax` must be a mapping, got int"),
        ("gpu:", "gpu: [", "not YAML"),
        ("gpu:", "1: 2\ngpu:", ":2: `key` must be text, got 1. Quote it."),
        ("gpu:", "danger: !!python/object/apply:os.getcwd []\ngpu:", ":2: not YAML: could not determine a constructor"),
    ],
)
def test_malformed_tables_are_refused_with_file_line_and_field(family, old, new, message):
    assert old in TABLE
    family(TABLE.replace(old, new, 1))
    pattern = r"h200\.yaml" * message.startswith(":") + ".*".join(re.escape(part) for part in message.split(".* "))
    with pytest.raises(ArgumentError, match=pattern):
        order(SoftmaxProblem(batch=1))


@pytest.mark.parametrize("text", ["", "- 1", "just text"])
def test_a_file_must_hold_a_mapping(family, text):
    with pytest.raises(ArgumentError, match="`document` must be a mapping"):
        tuning.load_table(family(text))


def test_an_unreadable_file_is_named(tmp_path):
    with pytest.raises(ArgumentError, match=r"gone\.yaml: cannot be read"):
        tuning.load_table(tmp_path / "gone.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"gpu: \xff")
    with pytest.raises(ArgumentError, match=r"latin\.yaml: cannot be read"):
        tuning.load_table(tmp_path / "latin.yaml")


@given(a=st.integers(0, 2**40), b=st.integers(0, 2**40))
def test_distance_is_symmetric_and_zero_at_itself(a, b):
    def row(n: int) -> tuning.TuningRow:
        return tuning.TuningRow({"n": n}, {"cuda": 1.0}, 1)

    assert row(a).distance({"n": a}) == 0
    assert row(a).distance({"n": b}) == pytest.approx(row(b).distance({"n": a}))


def test_values_that_yaml_has_no_type_for_are_compared_by_their_text():
    row = tuning.TuningRow({"shape": "(1, 2)", "scale": "None"}, {"cuda": 1.0}, 1)
    assert row.distance({"shape": (1, 2), "scale": None}) == 0
    assert row.distance({"shape": (1, 3), "scale": None}) is None


@pytest.mark.parametrize("name", installed_families())
def test_shipped_tables_are_well_formed(name):
    tuning.tables_of.cache_clear()
    for table in tuning.tables_of(name):
        assert table.operators
