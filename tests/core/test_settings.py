"""Settings: types, defaults, overrides, errors."""

from pathlib import Path

import pytest

from warploom.core.errors import ArgumentError
from warploom.core.settings import SETTINGS, settings


def test_every_setting_reads_its_default(monkeypatch):
    for row in SETTINGS.values():
        monkeypatch.delenv(row.variable, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert settings.cache_dir == Path("/somewhere/warploom")
    assert settings.compiler == "nvrtc"
    assert settings.debug_checks is False
    assert settings.backend == {}


@pytest.mark.parametrize(("text", "value"), [("1", True), ("true", True), ("0", False), ("OFF", False)])
def test_flags(monkeypatch, text, value):
    monkeypatch.setenv("WARPLOOM_DEBUG_CHECKS", text)
    assert settings.debug_checks is value


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("WARPLOOM_DEBUG_CHECKS", "maybe"),
        ("WARPLOOM_COMPILER", "gcc"),
        ("WARPLOOM_COMPILE_JOBS", "0"),
        ("WARPLOOM_COMM_TIMEOUT", "-1"),
    ],
)
def test_bad_value_names_variable_and_text(monkeypatch, variable, text):
    monkeypatch.setenv(variable, text)
    with pytest.raises(ArgumentError, match=f"{variable}.*{text}"):
        getattr(settings, variable.removeprefix("WARPLOOM_").lower())


def test_override_wins_over_the_environment_and_nests(monkeypatch):
    monkeypatch.setenv("WARPLOOM_COMPILER", "nvcc")
    with settings.override(compiler="nvrtc"):
        with settings.override(debug_checks=True):
            assert settings.compiler == "nvrtc"
            assert settings.debug_checks is True
        assert settings.debug_checks is False
    assert settings.compiler == "nvcc"


def test_override_refuses_unknown_names():
    with pytest.raises(ArgumentError, match="one of"), settings.override(colour="red"):
        pass


def test_unknown_setting_is_an_attribute_error():
    with pytest.raises(AttributeError, match="the settings are"):
        _ = settings.colour


def test_backend_map(monkeypatch):
    monkeypatch.setenv("WARPLOOM_BACKEND", "cuda, softmax=reference ,mm_bf16=cublaslt")
    assert settings.backend == {"*": "cuda", "softmax": "reference", "mm_bf16": "cublaslt"}
