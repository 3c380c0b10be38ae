"""Page allocator and scheduler: pure host logic."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model import END_OF_TEXT
from scheduler import OutOfPagesError, PageAllocator, Request, Scheduler

NEWLINE = ord("\n")


def run_to_end(scheduler: Scheduler, token: int = 65, max_steps: int = 1000) -> list[list[tuple[int, int]]]:
    """Run with a constant token; returns (request number, new tokens) of every step."""
    history = []
    for step in range(max_steps):
        if scheduler.done:
            return history
        works = scheduler.schedule(step)
        history.append([(work.request.number, work.num_new) for work in works])
        scheduler.finish(works, [token for work in works if work.samples])
    raise AssertionError(f"not done after {max_steps} steps")


def test_allocator_hands_out_every_page_once() -> None:
    allocator = PageAllocator(5)
    pages = [allocator.allocate() for _ in range(5)]
    assert sorted(pages) == [0, 1, 2, 3, 4]
    assert allocator.num_free == 0
    with pytest.raises(OutOfPagesError, match="5 cache pages"):
        allocator.allocate()


def test_allocator_refuses_to_release_twice() -> None:
    allocator = PageAllocator(2)
    page = allocator.allocate()
    allocator.release([page])
    with pytest.raises(ValueError, match="not in use"):
        allocator.release([page])
    with pytest.raises(ValueError, match="not in use"):
        allocator.release([7])
    assert allocator.num_free == 2


@given(st.lists(st.integers(0, 3), max_size=60))
def test_allocator_never_shares_a_page(actions: list[int]) -> None:
    allocator, held = PageAllocator(8), []
    for action in actions:
        if action == 0 and held:
            allocator.release([held.pop(0)])
        elif allocator.num_free:
            held.append(allocator.allocate())
        assert len(set(held)) == len(held)
        assert allocator.num_free == 8 - len(held)


def test_requests_arrive_and_end_at_different_steps() -> None:
    requests = [Request(1, [1] * 3, 4, arrival_step=0), Request(2, [1] * 5, 2, arrival_step=2)]
    history = run_to_end(Scheduler(requests, num_pages=8, page_size=2, max_step_tokens=64))
    assert history == [[(1, 3)], [(1, 1)], [(1, 1), (2, 5)], [(1, 1), (2, 1)]]
    assert [len(request.generated) for request in requests] == [4, 2]
    assert all(request.finish_reason == "length" for request in requests)


def test_long_prompts_are_cut_into_chunks() -> None:
    requests = [Request(1, [1] * 2, 6), Request(2, [1] * 10, 1)]
    history = run_to_end(Scheduler(requests, num_pages=16, page_size=4, max_step_tokens=4))
    assert history[:5] == [[(1, 2), (2, 2)], [(1, 1), (2, 3)], [(1, 1), (2, 3)], [(1, 1), (2, 2)], [(1, 1)]]
    assert len(requests[1].generated) == 1


def test_admission_waits_until_the_whole_request_fits() -> None:
    # Each needs 2 pages in the end though 1 at first: three of them can never run at once on 5 pages.
    requests = [Request(n, [1] * 2, 3) for n in (1, 2, 3)]
    scheduler = Scheduler(requests, num_pages=5, page_size=2, max_step_tokens=64)
    history = run_to_end(scheduler)
    assert max(len(step) for step in history) == 2
    assert scheduler.allocator.num_free == 5


def test_a_request_that_can_never_fit_is_refused_at_once() -> None:
    with pytest.raises(OutOfPagesError, match="needs 6 pages of 4 tokens, the cache has 5"):
        Scheduler([Request(1, [1] * 20, 2)], num_pages=5, page_size=4, max_step_tokens=8)


@pytest.mark.parametrize(
    ("tokens", "reason", "count"),
    [
        ([65, NEWLINE, NEWLINE, 66], "stop", 3),
        ([65, END_OF_TEXT, 66], "end of text", 2),
        ([65, NEWLINE, 65, NEWLINE, 65], "length", 5),
    ],
)
def test_reasons_to_end(tokens: list[int], reason: str, count: int) -> None:
    request = Request(1, [NEWLINE, NEWLINE], 5, stop=b"\n\n")  # the prompt's own newlines do not count
    for token in tokens:
        if request.finish_reason is None:
            request.append(token)
    assert request.finish_reason == reason
    assert len(request.generated) == count


@pytest.mark.parametrize(("prompt", "max_new_tokens"), [([], 3), ([1], 0)])
def test_empty_requests_are_refused(prompt: list[int], max_new_tokens: int) -> None:
    with pytest.raises(ValueError, match="request 9"):
        Request(9, prompt, max_new_tokens)


request_lists = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 8), st.integers(0, 10)), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(request_lists, st.integers(1, 5), st.integers(0, 6), st.integers(1, 9))
def test_any_load_ends_and_pages_hold_exactly_the_cached_tokens(
    shapes: list[tuple[int, int, int]], page_size: int, spare_pages: int, max_step_tokens: int
) -> None:
    requests = [Request(n, [1] * p, m, arrival_step=a) for n, (p, m, a) in enumerate(shapes)]
    num_pages = max(-(-request.max_tokens // page_size) for request in requests) + spare_pages
    scheduler = Scheduler(requests, num_pages, page_size, max_step_tokens)
    for step in range(2000):
        if scheduler.done:
            break
        works = scheduler.schedule(step)
        assert sum(work.num_new for work in works) <= max_step_tokens
        pages = [page for request in scheduler.running for page in request.pages]
        assert len(set(pages)) == len(pages)
        for work in works:
            cached = work.request.num_cached + work.num_new
            assert len(work.request.pages) == -(-cached // page_size)
        scheduler.finish(works, [65 for work in works if work.samples])
    assert scheduler.done
    assert scheduler.allocator.num_free == num_pages
    assert all(len(request.generated) == request.max_new_tokens for request in requests)
