"""What is kept of calls, and by which of their arguments."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from warploom.core.calls import Kept, layout_key, once_per_layout


def test_what_is_kept_has_a_limit():
    kept = Kept(2)
    assert [kept.keep(size, str(size)) for size in range(3)] == ["0", "1", "2"]
    assert kept == {2: "2"}


def test_layouts_tell_what_checks_depend_on():
    x = torch.zeros(4, 6)
    assert layout_key(x, None, "K", (1, 128)) == layout_key(torch.ones(4, 6), None, "K", (1, 128))
    others = [x.half(), x[:2], x.T.contiguous().T, x[:, ::2], x.to("meta")]
    assert len({layout_key(one) for one in (x, *others)}) == len(others) + 1
    assert layout_key(x) != layout_key(None)
    assert len({layout_key(one) for one in (1, 1.0, True)}) == 3
    assert layout_key(torch.nn.Parameter(x)) == layout_key(x)


def test_alignment_tells_only_if_asked_for():
    x = torch.zeros(32)
    near, far = x[1:9], x[4:12]
    assert layout_key(x[:8]) == layout_key(near)
    assert layout_key(x[:8], aligned=True) == layout_key(far, aligned=True) != layout_key(near, aligned=True)


def test_no_layout_of_what_it_cannot_see():
    assert layout_key([1, 2]) is None
    assert layout_key(([1], 2)) is None
    assert layout_key(torch.zeros(2, 2).to_sparse()) is None
    with FakeTensorMode():
        assert layout_key(torch.zeros(2)) is None
    seen = []
    torch.compile(lambda x: seen.append(layout_key(x)) or x + 1, backend="eager")(torch.zeros(2))
    assert seen == [None]


def checks():
    seen = []

    @once_per_layout
    def check(x, mode):
        if x.dim() != 1:
            raise ValueError("1-D only")
        seen.append(mode)
        return (len(x),)

    return check, seen


def test_checks_that_passed_are_skipped():
    check, seen = checks()
    assert [check(torch.zeros(size), mode) for size in (2, 3, 2) for mode in "ab"] == [
        (2,),
        (2,),
        (3,),
        (3,),
        (2,),
        (2,),
    ]
    assert seen == ["a", "b"] * 2


def test_checks_that_failed_are_not():
    check, _ = checks()
    for _ in range(2):
        with pytest.raises(ValueError, match="1-D only"):
            check(torch.zeros(2, 2), "a")


def test_arguments_without_a_layout_are_always_checked():
    check, seen = checks()
    assert [check(torch.zeros(2), ["a"]) for _ in range(2)] == [(2,), (2,)]
    assert len(seen) == 2
