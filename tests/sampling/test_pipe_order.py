"""Orders of processors that have no meaning: every one of them raises and names a valid order next to it."""

import itertools
import pickle
from typing import ClassVar

import pytest

from warploom.core.errors import ArgumentError
from warploom.logits_processor import (
    LogitsPipe,
    LogitsProcessor,
    MinP,
    PipeOrderError,
    Sample,
    Softmax,
    Temperature,
    TensorType,
    TopK,
    TopP,
)

BUILT_IN = (Temperature, Softmax, TopK, TopP, MinP, Sample)
BY_NAME = {kind.__name__: kind for kind in BUILT_IN}
LOGITS, PROBS = TensorType.LOGITS, TensorType.PROBS


def has_meaning(order, input_type):
    """The rules in words: temperature before softmax, top-p and min-p on probabilities, nothing after the draw."""
    if len(set(order)) < len(order):
        return False
    where = {kind: place for place, kind in enumerate(order)}
    if Sample in where and where[Sample] != len(order) - 1:
        return False
    for kind in (Temperature, Softmax):
        if input_type is PROBS and kind in where:
            return False
    softmax = where.get(Softmax, len(order) if input_type is LOGITS else -1)
    if where.get(Temperature, -1) > softmax:
        return False
    return all(where[kind] > softmax for kind in (TopP, MinP) if kind in where)


def orders(longest):
    for length in range(1, longest + 1):
        yield from itertools.product(BUILT_IN, repeat=length)


@pytest.mark.parametrize("input_type", [LOGITS, PROBS], ids=lambda t: t.value)
def test_every_order_of_up_to_three(input_type):
    for order in orders(3):
        made = [kind() for kind in order]
        if has_meaning(order, input_type):
            LogitsPipe(made, input_type=input_type)
            continue
        with pytest.raises(PipeOrderError) as caught:
            LogitsPipe(made, input_type=input_type)
        error = caught.value
        names = [kind.__name__ for kind in order]
        assert error.violation.second in names
        if error.violation.first:
            assert error.violation.first in names
        # Nothing can be made of these for probabilities: they take logits.
        if input_type is LOGITS or not set(order) <= {Temperature, Softmax}:
            assert has_meaning([BY_NAME[name] for name in error.nearest], input_type)
        assert str(error.violation) in str(error)


def test_every_order_of_all_six():
    """The nearest order keeps all processors."""
    for order in itertools.islice(itertools.permutations(BUILT_IN), 0, None, 7):
        if has_meaning(order, LOGITS):
            continue
        with pytest.raises(PipeOrderError) as caught:
            LogitsPipe([kind() for kind in order])
        nearest = caught.value.nearest
        assert has_meaning([BY_NAME[name] for name in nearest], LOGITS)
        assert len(nearest) == 6


@pytest.mark.parametrize(
    ("order", "input_type", "message"),
    [
        (
            [Softmax, Temperature, Sample],
            None,
            "Temperature can not follow Softmax: Temperature takes logits, Softmax gives probs. "
            "Nearest valid order: Temperature, Softmax, Sample.",
        ),
        (
            [Temperature, TopP, Sample],
            None,
            "TopP can not follow Temperature: TopP takes probs, Temperature gives logits. "
            "Nearest valid order: Temperature, Softmax, TopP, Sample.",
        ),
        (
            [Sample, TopP],
            None,
            "TopP can not follow Sample: TopP takes probs, Sample gives indices. Nearest valid order: TopP, Sample.",
        ),
        (
            [TopP, Sample],
            LOGITS,
            "TopP can not come first: TopP takes probs, the input is logits. "
            "Nearest valid order: Softmax, TopP, Sample.",
        ),
        (
            [TopP, TopP],
            None,
            "TopP can not follow TopP: there is one already, and calls give top_p by keyword. "
            "Nearest valid order: TopP.",
        ),
    ],
)
def test_messages(order, input_type, message):
    with pytest.raises(PipeOrderError) as caught:
        LogitsPipe([kind() for kind in order], input_type=input_type)
    assert str(caught.value) == f"LogitsPipe: {message}"
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_own_processors_are_moved_too():
    class Bias(LogitsProcessor):
        transitions: ClassVar = {LOGITS: LOGITS}

    with pytest.raises(PipeOrderError) as caught:
        LogitsPipe([Softmax(), Bias(), TopP(), Sample()])
    assert caught.value.nearest == ("Bias", "Softmax", "TopP", "Sample")


def test_no_valid_order_is_found():
    class Tokens(LogitsProcessor):
        transitions: ClassVar = {TensorType.INDICES: TensorType.INDICES}

    with pytest.raises(PipeOrderError) as caught:
        LogitsPipe([Tokens()], input_type=LOGITS)
    assert "Tokens can not come first: Tokens takes indices, the input is logits." in str(caught.value)


@pytest.mark.parametrize(
    ("processors", "message"),
    [
        ([], "one or more"),
        ([Softmax], r"Call it: Softmax\(\)"),
        ([Softmax(), "Sample"], "'Sample'"),
        ([TopK(), Sample()], "`input_type` must be TensorType.LOGITS or TensorType.PROBS, got None"),
        ([Sample()], "logits and probs"),
    ],
)
def test_wrong_processors(processors, message):
    with pytest.raises(ArgumentError, match=message):
        LogitsPipe(processors)
