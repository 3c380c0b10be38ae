"""`LogitsPipe`: plans, fused against unfused, parameters, the user's own processors and rules."""

import itertools
import math
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from warploom import sampling
from warploom.core.errors import ArgumentError
from warploom.core.testing import assert_close, random_normal
from warploom.logits_processor import (
    FusionRule,
    LogitsPipe,
    LogitsProcessor,
    MinP,
    Sample,
    Softmax,
    Temperature,
    TensorType,
    TopK,
    TopP,
    Violation,
)

LOGITS, PROBS = TensorType.LOGITS, TensorType.PROBS
PARAMETERS = {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.05}


def plan(pipe):
    return [stage.processor.name for stage in pipe.plan]


def needed(pipe):
    names = {name for stage in pipe.plan for name in stage.processor.parameters}
    return {name: value for name, value in PARAMETERS.items() if name in names}


def valid_pipes():
    """Every order of built-in processors that has a meaning, for the inputs it has one for."""
    after = [[*order] for n in range(4) for order in itertools.permutations((TopK, TopP, MinP), n)]
    for temperature, mask, filters, ends in itertools.product(([], [Temperature]), ([], [TopK]), after, ([], [Sample])):
        if mask and TopK in filters:
            continue
        for before in {tuple(temperature + mask), tuple(mask + temperature)}:
            yield [*before, Softmax, *filters, *ends], LOGITS
            if not filters and (before or ends):
                yield [*before, *ends], LOGITS
        if not temperature and not mask and (filters or ends):
            yield [*filters, *ends], PROBS


@pytest.mark.parametrize(
    ("processors", "input_type"),
    [pytest.param(p, t, id="-".join([t.value, *(c.__name__ for c in p)])) for p, t in valid_pipes()],
)
def test_fused_is_unfused_in_the_fewest_operators(processors, input_type):
    made = [processor() for processor in processors]
    fused = LogitsPipe(made, input_type=input_type)
    unfused = LogitsPipe(made, compile=False, input_type=input_type)
    assert plan(unfused) == [processor.__name__ for processor in processors]
    # One operator does everything that ends in probabilities or tokens; before a softmax nothing can be fused.
    ends_in_logits = Softmax not in processors and Sample not in processors and input_type is LOGITS
    assert len(fused.plan) == (len(made) if ends_in_logits else 1)
    tensor = random_normal((40, 200), scale=2.0)
    tensor = tensor.abs() if input_type is PROBS else tensor
    parameters = needed(fused)
    if Sample in processors:
        parameters["seed"] = 5
    first, second = fused(tensor, **parameters), unfused(tensor, **parameters)
    if TopP in processors and Sample in processors:  # may draw twice, where a distribution apart is drawn from once
        probs = LogitsPipe(made[:-1], input_type=input_type)(
            tensor, **{k: v for k, v in parameters.items() if k != "seed"}
        )
        probs = probs if len(made) > 1 else tensor
        assert bool((probs.gather(1, first.long().unsqueeze(1)) > 0).all())
        assert int((first == second).sum()) > 20  # most are accepted in the first round
    elif Sample in processors:
        assert torch.equal(first, second)
    else:
        assert_close(first, second)
        assert torch.equal(first == 0, second == 0)


@given(data=st.data())
def test_per_row_parameters_fused_and_unfused(data):
    rows = data.draw(st.integers(1, 5))
    floats = st.lists(st.floats(-0.5, 1.5, width=32), min_size=rows, max_size=rows).map(torch.tensor)
    parameters = {
        "temperature": data.draw(st.sampled_from([0.0, 1e-42, 0.25, 1.0, 2.0, 64.0])),  # exact quotients
        "top_k": data.draw(st.lists(st.integers(-1, 30), min_size=rows, max_size=rows).map(torch.tensor)),
        "top_p": data.draw(floats),
        "min_p": data.draw(floats),
        "seed": torch.arange(rows),
    }
    made = [Temperature(), Softmax(), TopK(), TopP(), MinP(), Sample()]
    logits = (random_normal((rows, 25), seed=rows) * 4).round() / 4
    fused = LogitsPipe(made)(logits, **parameters)
    probs = LogitsPipe(made[:-1], compile=False)(logits, **{k: v for k, v in parameters.items() if k != "seed"})
    assert bool((probs.gather(1, fused.long().unsqueeze(1)) > 0).all())
    parameters["top_p"] = torch.where((parameters["top_p"] > 0) & (parameters["top_p"] < 1), 1.0, parameters["top_p"])
    assert torch.equal(LogitsPipe(made)(logits, **parameters), LogitsPipe(made, compile=False)(logits, **parameters))


def test_bad_rows_are_the_same_fused_and_unfused():
    rows = [[math.nan, 0.0, 1.0], [math.inf, 0.0, 1.0], [-math.inf] * 3, [0.0, 1.0, 2.0]]
    made = [Temperature(), TopK(), Softmax(), TopP(), Sample()]
    for temperature in (1.0, 0.0, -1.0, math.nan, math.inf):
        parameters = {"temperature": temperature, "top_k": 2, "top_p": 0.9, "seed": 1, "return_valid": True}
        fused = LogitsPipe(made)(torch.tensor(rows), **parameters)
        unfused = LogitsPipe(made, compile=False)(torch.tensor(rows), **parameters)
        assert torch.equal(fused[0], unfused[0])
        assert torch.equal(fused[1], unfused[1])
        assert fused[1].tolist() == [False, False, False, temperature >= 0]


def test_is_the_operators_by_hand():
    logits = random_normal((30, 100))
    pipe = LogitsPipe([Temperature(), Softmax(), TopK(), TopP(), Sample()])
    tokens = pipe(logits, temperature=0.7, top_k=10, top_p=0.8, seed=3)
    probs = sampling.softmax(logits, 0.7, backend="reference")
    assert torch.equal(tokens, sampling.top_k_top_p_sampling_from_probs(probs, 10, 0.8, seed=3))
    masked = LogitsPipe([TopK(), Softmax(), TopP(), Sample()])(logits, top_k=10, top_p=0.8, seed=3)
    assert torch.equal(masked, sampling.top_k_top_p_sampling_from_logits(logits, 10, 0.8, seed=3))


def test_joint_filters():
    probs = torch.tensor([[0.4, 0.3, 0.2, 0.1]])
    joint = [TopK(joint_topk_topp=True), TopP()]
    for compile in (True, False):
        kept = LogitsPipe(joint, compile, PROBS)(probs, top_k=3, top_p=0.75)
        assert_close(kept, torch.tensor([[4 / 9, 3 / 9, 2 / 9, 0.0]]))
        kept = LogitsPipe([TopK(), TopP()], compile, PROBS)(probs, top_k=3, top_p=0.75)
        assert_close(kept, torch.tensor([[4 / 7, 3 / 7, 0.0, 0.0]]))


def test_indices_keep_parameters_with_their_rows():
    logits, indices = random_normal((3, 50)), torch.tensor([2, 0, 2, 1, 1])
    parameters = {"top_k": torch.tensor([1, 5, 50]), "top_p": torch.tensor([1.0, 0.5, 0.3])}
    made = [Softmax(), TopK(), TopP(), Sample()]
    rows = {name: value[indices] for name, value in parameters.items()}
    probs = sampling.softmax(logits, backend="reference")
    expected = sampling.top_k_top_p_sampling_from_probs(probs[indices], **rows, seed=2)
    assert torch.equal(LogitsPipe(made)(logits, **parameters, indices=indices, seed=2), expected)
    unfused = LogitsPipe(made[:-1], compile=False)(logits, **parameters)
    drawn = LogitsPipe(made, compile=False)(logits, **parameters, indices=indices, seed=2)
    assert torch.equal(drawn, sampling.sampling_from_probs(unfused[indices], seed=2))


def test_parameters_reach_the_draw():
    logits, pipe = random_normal((6, 40)), LogitsPipe([Softmax(), Sample(deterministic=False)])
    out, offset = torch.empty(6, dtype=torch.int32), torch.zeros(1, dtype=torch.int64)
    tokens, valid = pipe(logits, seed=1, offset=offset, out=out, return_valid=True, backend="reference")
    assert tokens is out
    assert bool(valid.all())
    assert offset.tolist() == [1]
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    assert torch.equal(*(pipe(logits, generator=generator) for generator in generators))
    with pytest.raises(ArgumentError, match="NaN"):
        pipe(logits * math.nan, check_nan=True)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"top_p": 0.5}, "`temperature` must be given by keyword, got nothing. Temperature needs it."),
        ({"temperature": 1.0}, "`top_p` must be given"),
        ({"temperature": 1.0, "top_p": 0.5, "top_q": 1}, "`top_q` .* unknown name. Did you mean `top_p`"),
        ({"temperature": 1.0, "top_p": 0.5, "top_k": 1}, "`top_k`"),
        ({"temperature": 1.0, "top_p": torch.ones(3)}, r"`top_p` must be a number or a tensor \[1\] or \[2\]"),
        ({"temperature": "x", "top_p": 0.5}, "`temperature`"),
        ({"temperature": 1.0, "top_p": 0.5, "backend": "cudda"}, "`backend`"),
    ],
)
def test_wrong_parameters(parameters, message):
    with pytest.raises(ArgumentError, match=message):
        LogitsPipe([Temperature(), Softmax(), TopP(), Sample()])(torch.zeros(2, 3), **parameters)


class Penalty(LogitsProcessor):
    """Subtracts a number from some tokens' logits."""

    transitions: ClassVar = {LOGITS: LOGITS}
    parameters = ("penalised",)
    optional_parameters = ("amount",)

    def apply(self, tensor, input_type, *, penalised, amount=1.0):
        return tensor - penalised * amount


class PenaltySoftmax(LogitsProcessor):
    transitions: ClassVar = {LOGITS: PROBS}
    parameters = ("penalised",)
    optional_parameters = ("amount",)

    def apply(self, tensor, input_type, *, penalised, amount=1.0):
        return torch.softmax(tensor - penalised * amount, dim=-1)


def test_own_processors_split_the_plan():
    pipe = LogitsPipe([Penalty(), Temperature(), Softmax(), TopP(), Sample()])
    assert plan(pipe) == ["Penalty", "Temperature + Softmax + TopP + Sample"]
    logits, penalised = random_normal((9, 30)), torch.zeros(30)
    penalised[:10] = math.inf
    tokens = pipe(logits, penalised=penalised, temperature=2.0, top_p=0.9, seed=1)
    assert bool((tokens >= 10).all())
    halves = LogitsPipe([Temperature(), Penalty(), Softmax(), Sample()])
    assert plan(halves) == ["Temperature", "Penalty", "Softmax + Sample"]


def test_own_fusion_rules_come_first_and_are_held_to_their_promise():
    rule = FusionRule("penalty", (Penalty, Softmax), build=lambda *stages: PenaltySoftmax())
    made = [Penalty(), Softmax(), TopP(), Sample()]
    pipe = LogitsPipe(made, custom_fusion_rules=[rule])
    assert plan(pipe) == ["PenaltySoftmax", "TopP + Sample"]
    logits, penalised = random_normal((9, 30)), random_normal((30,))
    parameters = {"penalised": penalised, "amount": 2.0, "top_p": 0.7, "seed": 4}
    assert torch.equal(pipe(logits, **parameters), LogitsPipe(made)(logits, **parameters))

    guarded = FusionRule("never", (Penalty, Softmax), lambda *stages: PenaltySoftmax(), guard=lambda *stages: False)
    assert plan(LogitsPipe(made, custom_fusion_rules=[guarded])) == plan(LogitsPipe(made))
    wrong_type = FusionRule("wrong type", (Penalty, Softmax), build=lambda *stages: Penalty())
    with pytest.raises(ArgumentError, match=r"'wrong type'.*gives probs.*gives logits"):
        LogitsPipe(made, custom_fusion_rules=[wrong_type])
    wants_more = FusionRule("wants more", (Softmax, TopP), build=lambda *stages: PenaltySoftmax())
    with pytest.raises(ArgumentError, match=r"also \['penalised'\]"):
        LogitsPipe(made[1:], custom_fusion_rules=[wants_more])
    endless = FusionRule("endless", (Penalty,), build=lambda *stages: Penalty())
    with pytest.raises(ArgumentError, match="'endless' again and again"):
        LogitsPipe(made, custom_fusion_rules=[endless])


def test_own_validity_checks():
    def sampled_from_filtered(processors):
        names = [processor.name for processor in processors]
        if names[-2:] == ["Softmax", "Sample"]:
            return Violation("Softmax", "Sample", "draws are to be from a filtered distribution")
        return None

    checks = [sampled_from_filtered]
    assert plan(LogitsPipe([Softmax(), TopP(), Sample()], custom_validity_checks=checks))
    with pytest.raises(ArgumentError, match="filtered distribution"):
        LogitsPipe([Softmax(), Sample()], custom_validity_checks=checks)


def test_own_processors_must_define_apply():
    class Nothing(LogitsProcessor):
        transitions: ClassVar = {LOGITS: LOGITS}

    with pytest.raises(NotImplementedError, match="Nothing"):
        LogitsPipe([Nothing()])(torch.zeros(1, 2))


def test_explain_and_repr():
    pipe = LogitsPipe([Penalty(), Temperature(), Softmax(), TopP(), Sample()])
    assert repr(pipe) == "LogitsPipe(logits -> Penalty -> Temperature + Softmax + TopP + Sample -> indices)"
    lines = str(pipe.explain(torch.zeros(2, 7))).splitlines()
    assert lines[0] == "LogitsPipe in 2 steps for float32 [2, 7] on cpu"
    assert lines[1] == "  1. Penalty: logits -> logits, in Python"
    assert "logits -> indices, operator sample(softmax, top_p), backend reference (" in lines[2]
    unfused = LogitsPipe([TopK(), Softmax(), TopP()], compile=False, input_type=LOGITS)
    text = str(unfused.explain())
    for part in ("operator top_k_mask_logits, backend", "operator softmax, backend", "operator renorm(top_p), backend"):
        assert part in text
    assert "operator softmax, backend reference (backend='reference')" in str(unfused.explain(backend="reference"))
    renorm = LogitsPipe([Softmax(), TopP()])
    assert "operator renorm(softmax, top_p)" in repr(renorm.explain())


def test_temperature_alone():
    logits = torch.tensor([[1.0, 4.0, 4.0, -math.inf]]).repeat(5, 1)
    temperature = torch.tensor([2.0, 0.0, math.inf, -1.0, math.nan])
    scaled = LogitsPipe([Temperature()])(logits.bfloat16(), temperature=temperature)
    assert scaled.dtype == torch.float32
    assert scaled[0].tolist() == [0.5, 2.0, 2.0, -math.inf]
    assert scaled[1, 1:3].tolist() == [0.0, 0.0]
    assert bool((scaled[1, [0, 3]] < -1e38).all())
    assert bool((scaled[2, :3].abs() < 1e-37).all())
    assert float(scaled[2, 3]) == -math.inf
    assert bool(torch.isnan(scaled[3:]).all())
