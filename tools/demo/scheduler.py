"""Continuous batching: which requests run in a step, with how many tokens, on which cache pages.

Everything here is host state in plain Python; no tensor and no operator is involved.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from model import END_OF_TEXT


class OutOfPagesError(RuntimeError):
    """The paged cache has no free page."""


class PageAllocator:
    """Free list of the cache's pages; the page that was released last is taken first."""

    def __init__(self, num_pages: int) -> None:
        self._free = list(reversed(range(num_pages)))
        self._taken: set[int] = set()

    @property
    def num_free(self) -> int:
        return len(self._free)

    def allocate(self) -> int:
        """Take one page.

        Raises
        ------
        OutOfPagesError
            All pages are in use.
        """
        if not self._free:
            raise OutOfPagesError(f"all {len(self._taken)} cache pages are in use")
        page = self._free.pop()
        self._taken.add(page)
        return page

    def release(self, pages: Iterable[int]) -> None:
        """Give pages back.

        Raises
        ------
        ValueError
            A page is not in use: it was released before, or never allocated.
        """
        for page in pages:
            if page not in self._taken:
                raise ValueError(f"page {page} is not in use")
            self._taken.remove(page)
            self._free.append(page)


@dataclass(eq=False)
class Request:
    """One prompt and what became of it.

    Attributes
    ----------
    number : int
        Position on the command line or in the file, from 1.
    prompt : sequence of int
        Prompt tokens, at least one.
    max_new_tokens : int
        Most tokens to generate.
    arrival_step : int
        First step in which the request is known.
    stop : bytes
        Generation ends after this sequence of bytes; empty for none.
    tokens : list of int
        Prompt and generated tokens.
    num_cached : int
        Tokens whose keys and values are in the cache.
    pages : list of int
        Cache pages, in token order.
    finish_reason : str or None
        "stop", "end of text" or "length"; None while running.
    """

    number: int
    prompt: Sequence[int]
    max_new_tokens: int
    arrival_step: int = 0
    stop: bytes = b""
    tokens: list[int] = field(init=False)
    num_cached: int = 0
    pages: list[int] = field(default_factory=list)
    finish_reason: str | None = None

    def __post_init__(self) -> None:
        if not self.prompt or self.max_new_tokens < 1:
            raise ValueError(f"request {self.number} needs a prompt of one token or more and room for a new one")
        self.tokens = list(self.prompt)

    @property
    def generated(self) -> list[int]:
        return self.tokens[len(self.prompt) :]

    @property
    def max_tokens(self) -> int:
        """Most tokens that the cache holds for this request; the last generated one never enters it."""
        return len(self.prompt) + self.max_new_tokens - 1

    def append(self, token: int) -> None:
        """Add a sampled token and see whether it ends the request."""
        self.tokens.append(token)
        if token >= END_OF_TEXT:
            self.finish_reason = "end of text"
        elif self.stop and self._ends_with_stop():
            self.finish_reason = "stop"
        elif len(self.generated) >= self.max_new_tokens:
            self.finish_reason = "length"

    def _ends_with_stop(self) -> bool:
        tail = self.generated[-len(self.stop) :]
        return tail == list(self.stop)


@dataclass(frozen=True)
class Work:
    """Part of a step: the next `num_new` tokens of a request enter the cache."""

    request: Request
    num_new: int

    @property
    def samples(self) -> bool:
        """Whether the logits of the last of these tokens give the request's next token."""
        return self.request.num_cached + self.num_new == len(self.request.tokens)


class Scheduler:
    """First come, first served; a request is admitted when the cache can hold it to its end.

    Parameters
    ----------
    requests : iterable of Request
        All that will ever arrive, in any order.
    num_pages, page_size : int
        Shape of the paged cache: pages, and tokens in a page.
    max_step_tokens : int
        Most tokens of one step. Longer prompts are cut into chunks over several steps.
    """

    def __init__(self, requests: Iterable[Request], num_pages: int, page_size: int, max_step_tokens: int) -> None:
        self.allocator = PageAllocator(num_pages)
        self.page_size = page_size
        self.max_step_tokens = max_step_tokens
        self.waiting = deque(sorted(requests, key=lambda request: request.arrival_step))
        self.running: list[Request] = []
        for request in self.waiting:
            needed = self._pages_for(request.max_tokens)
            if needed > num_pages:
                raise OutOfPagesError(
                    f"request {request.number} needs {needed} pages of {page_size} tokens, the cache has {num_pages}; "
                    "raise --num-pages or lower --max-new-tokens"
                )

    @property
    def done(self) -> bool:
        return not self.waiting and not self.running

    def schedule(self, step: int) -> list[Work]:
        """Admit what has arrived and fits, and give each running request its tokens and pages of this step.

        In order of arrival, so that a long prompt never stalls requests that came before it. The list is empty when
        nothing has arrived yet.
        """
        self._admit(step)
        budget = self.max_step_tokens
        works = []
        for request in self.running:
            num_new = min(len(request.tokens) - request.num_cached, budget)
            if num_new == 0:
                break
            budget -= num_new
            self._grow(request, request.num_cached + num_new)
            works.append(Work(request, num_new))
        return works

    def finish(self, works: Sequence[Work], tokens: Sequence[int]) -> list[Request]:
        """Account for a step that ran; `tokens` holds one sampled token per work that `samples`, in order.

        Returns the requests that ended, their pages released.
        """
        sampled = iter(tokens)
        for work in works:
            samples = work.samples
            work.request.num_cached += work.num_new
            if samples:
                work.request.append(next(sampled))
        finished = [work.request for work in works if work.request.finish_reason]
        for request in finished:
            self.allocator.release(request.pages)
            request.pages = []
            self.running.remove(request)
        return finished

    def _admit(self, step: int) -> None:
        while self.waiting and self.waiting[0].arrival_step <= step:
            promised = sum(self._pages_for(r.max_tokens) - len(r.pages) for r in self.running)
            if self.allocator.num_free - promised < self._pages_for(self.waiting[0].max_tokens):
                return
            self.running.append(self.waiting.popleft())

    def _pages_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.page_size)

    def _grow(self, request: Request, num_tokens: int) -> None:
        while len(request.pages) < self._pages_for(num_tokens):
            request.pages.append(self.allocator.allocate())
