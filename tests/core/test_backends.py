"""Selection, explanation and refusal of backends."""

import warnings
from dataclasses import dataclass

import pytest
import torch

from warploom.core.backends import OPERATORS, Backend, Operator, Support
from warploom.core.errors import ArgumentError, PerformanceWarning, UnsupportedError
from warploom.core.problem import Problem
from warploom.core.settings import settings


@dataclass(frozen=True, kw_only=True)
class ToyProblem(Problem):
    size: int


class Fast(Backend):
    name = "fast"
    needs_gpu = True
    min_arch = 90

    def supports(self, problem):
        return Support.of(
            (problem.size % 8 == 0, f"size {problem.size} is not a multiple of 8"), (problem.size < 100, "too large")
        )

    def run(self, problem):
        return "fast"

    def details(self, problem):
        return f"in {problem.size // 8} pieces"


class Plain(Backend):
    name = "plain"

    def supports(self, problem):
        return Support.of((problem.size != 13, "unlucky"))

    def run(self, problem):
        return "plain"


class Reference(Backend):
    name = "reference"

    def supports(self, problem):
        return Support.of((problem.size >= 0, "negative"))

    def run(self, problem):
        return "reference"


@pytest.fixture
def toy():
    operator = Operator("toy", family="core", backends=(Fast(), Plain(), Reference()))
    yield operator
    del OPERATORS["toy"]


def gpu(size, arch=90):
    return ToyProblem(size=size, device_type="cuda", arch=arch, device_name="Test GPU")


def test_auto_takes_the_first_that_supports(toy):
    assert toy.select(gpu(8)).name == "fast"
    assert toy.select(gpu(7)).name == "plain"
    assert toy.select(ToyProblem(size=8)).name == "plain"


def test_every_reason_is_listed(toy):
    text = str(toy.explain(gpu(101)))
    assert "size 101 is not a multiple of 8; too large" in text
    assert "taken: plain" in text


def test_a_backend_says_how_it_would_compute(toy):
    assert "fast       yes: in 2 pieces" in str(toy.explain(gpu(16)))
    assert "pieces" not in str(toy.explain(gpu(13)))


def test_device_reasons_come_alone(toy):
    assert toy.explain(ToyProblem(size=7)).rows[0].support.reasons == ("needs tensors on an NVIDIA GPU",)
    assert toy.explain(gpu(8, arch=80)).rows[0].support.reasons == ("needs sm_90 or later, this is sm_80",)


def test_named_backend_is_honoured_or_refused_with_the_table(toy):
    assert toy.select(gpu(8), "plain").why == "backend='plain'"
    with pytest.raises(UnsupportedError) as refusal:
        toy.select(gpu(7), "fast")
    message = str(refusal.value)
    assert "not a multiple of 8" in message
    assert "plain" in message
    assert "taken: none (fast refuses" in message


def test_unknown_name_lists_backends_and_the_nearest(toy):
    with pytest.raises(ArgumentError, match=r"'auto' or one of fast, plain, reference.*Did you mean 'plain'"):
        toy.select(gpu(8), "plane")


def test_all_refuse(toy):
    with pytest.raises(NotImplementedError, match="every backend refuses"):
        Operator("toy", family="core", backends=(Fast(),)).select(ToyProblem(size=8))


def test_setting_for_one_operator_and_for_all(toy):
    with settings.override(backend="toy=reference"):
        assert toy.select(ToyProblem(size=8)).name == "reference"
    with settings.override(backend="reference"):
        assert toy.select(ToyProblem(size=8)).why == "the setting WARPLOOM_BACKEND"
    with settings.override(backend="elsewhere"):  # no such backend here: it concerns other operators
        assert toy.select(ToyProblem(size=8)).name == "plain"
    with settings.override(backend="toy=elsewhere"), pytest.raises(ArgumentError):
        toy.select(ToyProblem(size=8))
    assert toy.select(ToyProblem(size=8)).name == "plain"


def test_environment_changes_take_effect(toy, monkeypatch):
    assert toy.select(ToyProblem(size=8)).name == "plain"
    monkeypatch.setenv("WARPLOOM_BACKEND", "toy=reference")
    assert toy.select(ToyProblem(size=8)).name == "reference"


def test_reference_on_a_gpu_is_never_silent(toy):
    with pytest.warns(PerformanceWarning, match="unlucky") as warned:
        assert toy.select(gpu(13)).name == "reference"
    assert warned[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        toy.select(gpu(13))
        toy.select(ToyProblem(size=13))


def test_named_reference_does_not_warn(toy):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert toy.select(gpu(13), "reference").name == "reference"


def test_selections_are_cached_and_bounded(toy):
    first = toy.select(ToyProblem(size=8))
    assert toy.select(ToyProblem(size=8)) is first
    for size in range(5000):
        toy.select(ToyProblem(size=size))
    assert len(toy._selections) <= 4096


class Sum(Backend):
    """Adds, and counts how often it was bound."""

    name = "sum"

    def __init__(self):
        self.bound = []

    def supports(self, problem):
        return Support.of((problem.size < 9, "too large"))

    def bind(self, problem, *tensors):
        self.bound.append(problem)
        return super().bind(problem, *tensors)

    def run(self, problem, x, y, factor=1):
        return factor * (x + (y if y is not None else problem.size))


@pytest.fixture
def adder():
    operator = Operator("adder", family="core", backends=(Sum(), Reference()))
    yield operator
    del OPERATORS["adder"]


def describe(x, y, extra=0):
    return ToyProblem(size=len(x) + extra)


def test_calls_that_lie_alike_are_bound_once(adder):
    x, y = torch.arange(3.0), torch.ones(3)
    for scale in (1, 2):
        assert adder.call(describe, "auto", (scale * x, y)).tolist() == [1, 1 + scale, 1 + 2 * scale]
        assert adder.last.name == "sum"
    bound = adder.backends["sum"].bound
    assert len(bound) == 1
    adder.call(describe, "auto", (x, y[:1]))
    adder.call(describe, "auto", (x.double(), y))
    adder.call(describe, "auto", (x, None))
    adder.call(describe, "auto", (torch.arange(4.0)[1:], y))
    assert len(bound) == 5
    assert adder.call(describe, "auto", (x, None), (2,)).tolist() == [5, 6, 7]
    assert adder.call(describe, "auto", (x, None), (3,)).tolist() == [6, 7, 8]
    assert len(bound) == 7
    assert [adder.call(describe, "auto", (x, None), (3,), (by,)).tolist() for by in (1, 2)] == [[6, 7, 8], [12, 14, 16]]
    assert len(bound) == 7


def test_calls_follow_settings(adder, monkeypatch):
    x = torch.zeros(1), None
    assert adder.call(describe, "auto", x) == 1
    with pytest.raises(TypeError, match="Reference"):  # its `run` takes a problem alone
        adder.call(describe, "reference", x)
    with settings.override(backend="adder=reference"), pytest.raises(TypeError, match="Reference"):
        adder.call(describe, "auto", x)
    assert adder.call(describe, "auto", x) == 1
    monkeypatch.setenv("WARPLOOM_BACKEND", "adder=reference")
    with pytest.raises(TypeError, match="Reference"):
        adder.call(describe, "auto", x)


def test_a_refused_call_is_refused_again(adder):
    for _ in range(2):
        with pytest.raises(UnsupportedError, match="too large"):
            adder.call(describe, "sum", (torch.zeros(9), None))


def test_forgotten_calls_are_bound_anew(adder):
    for _ in range(2):
        adder.call(describe, "auto", (torch.zeros(1), None))
        adder.forget()
    assert len(adder.backends["sum"].bound) == 2


def test_bound_calls_are_limited(adder):
    x = torch.zeros(1)
    for extra in range(5000):
        adder.call(lambda x, y, extra: ToyProblem(size=1), "auto", (x, None), (extra,))
    assert len(adder._calls) <= 4096
