"""Text of concurrent requests, line by line."""

from __future__ import annotations

import io

from display import LineDisplay, LiveDisplay, TextStream, make_display, printable
from scheduler import Request


def request_of(text: str, number: int = 1) -> Request:
    return Request(number, list(text.encode()), 5)


def test_bytes_of_one_character_may_arrive_in_different_steps() -> None:
    stream = TextStream()
    first, second = "é\n".encode()[:1], "é\n".encode()[1:]
    assert stream.push(list(first)) == []
    assert stream.push(list(second)) == ["é"]


def test_broken_bytes_and_special_tokens_do_not_stop_the_text() -> None:
    stream = TextStream()
    assert stream.push([65, 0xFF, 256, 66, 10]) == ["A\N{REPLACEMENT CHARACTER}B"]
    assert stream.push([0xE2]) == []
    assert stream.flush() == ["\N{REPLACEMENT CHARACTER}"]


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert printable("a\x1b[2J\r\tb\n") == "a\N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}    b\n"


def test_lines_carry_the_number_of_their_request() -> None:
    out = io.StringIO()
    display, first, second = LineDisplay(out), request_of("x", 1), request_of("y", 2)
    display.update([(first, list(b"def f():\n  re")), (second, list(b"import"))], [])
    display.update([(first, list(b"turn\n")), (second, list(b" os"))], [])
    second.finish_reason = "length"
    display.update([], [second])
    assert out.getvalue().splitlines() == ["[1] def f():", "[1]   return", "[2] import os", "[2] (0 tokens, length)"]


def test_the_live_view_redraws_only_the_lines_that_grow() -> None:
    out = io.StringIO()
    display, request = LiveDisplay(out), request_of("x")
    display.update([(request, list(b"one\ntw"))], [])
    assert out.getvalue().count("\n") == 2  # the full line, and the one that grows
    request.finish_reason = "stop"
    display.update([(request, list(b"o\n"))], [request])
    assert "\x1b[1F\x1b[J" in out.getvalue()
    assert out.getvalue().endswith("(0 tokens, stop)\n")


def test_pipes_get_plain_lines() -> None:
    assert type(make_display(io.StringIO())) is LineDisplay
