"""What a compute-sanitizer says, here a script in its place, is what a test makes of it."""

import pytest

from warploom.core.testing import assert_sanitizer_is_silent, sanitizer


@pytest.fixture
def says(tmp_path, monkeypatch):
    def put(text, code=0):
        program = tmp_path / "compute-sanitizer"
        program.write_text(f"#!/bin/sh\necho \"$@\"\necho '{text}'\nexit {code}\n")
        program.chmod(0o755)
        monkeypatch.setattr(sanitizer, "_SANITIZER", str(program))

    return put


@pytest.mark.parametrize(
    ("tool", "text"), [("memcheck", "ERROR SUMMARY: 0 errors"), ("racecheck", "RACECHECK SUMMARY: 0 hazards displayed")]
)
def test_silence_passes(says, tmp_path, tool, text):
    says(text)
    assert_sanitizer_is_silent(tool, "gemm_", tmp_path / "program.py", "steps")


@pytest.mark.parametrize(
    ("text", "code"),
    [("ERROR SUMMARY: 2 errors", 0), ("ERROR SUMMARY: 0 errors", 9), ("a program that ended early", 0)],
)
def test_anything_else_fails_with_what_was_said(says, tmp_path, text, code):
    says(text, code)
    with pytest.raises(AssertionError, match=text):
        assert_sanitizer_is_silent("memcheck", "gemm_", tmp_path / "program.py")


def test_is_skipped_where_it_does_not_run(says, tmp_path, monkeypatch):
    says("Device not supported", 1)
    with pytest.raises(pytest.skip.Exception, match="does not run"):
        assert_sanitizer_is_silent("memcheck", "gemm_", tmp_path / "program.py")
    monkeypatch.setattr(sanitizer, "_SANITIZER", "no-such-sanitizer")
    with pytest.raises(pytest.skip.Exception, match="needs compute-sanitizer"):
        assert_sanitizer_is_silent("memcheck", "gemm_", tmp_path / "program.py")
