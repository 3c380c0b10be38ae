"""The torch that is installed suits the machine."""

import json
import subprocess
from pathlib import Path

import pytest

CPU = ["filelock", "sympy>=1.13", 'optree; extra == "optree"']
CUDA = ["filelock", 'nvidia-cudnn-cu13==9.1; platform_system == "Linux"']
NEWER_CUDA = ["filelock", "cuda-toolkit[cublas,nvrtc]==13.2.2"]


@pytest.fixture
def machine(monkeypatch):
    """A machine with or without a GPU, where pip finds what the test says."""
    import torch_build

    def make(gpu, driver=None, offers=None):
        def run(command, **_):
            requires = (offers or {}).get(command[-1])
            report = {"install": [{"metadata": {"requires_dist": requires}}]}
            return subprocess.CompletedProcess(command, 0 if requires is not None else 1, json.dumps(report), "")

        monkeypatch.setattr(torch_build, "has_nvidia_gpu", lambda: gpu)
        monkeypatch.setattr(torch_build, "driver_version", lambda: driver)
        monkeypatch.setattr(torch_build.subprocess, "run", run)
        return torch_build

    return make


def choice(build, **options):
    chosen = build.choose(Path("python"), {}, **options)
    return chosen.requirement, chosen.backend


def test_gpu_takes_the_cuda_build(machine):
    assert choice(machine(gpu=True, driver=580)) == ("torch", None)
    assert choice(machine(gpu=True)) == ("torch", None)


def test_gpu_with_an_older_driver_asks_uv_for_the_fitting_build(machine):
    assert choice(machine(gpu=True, driver=570)) == ("torch", "auto")


def test_cpu_build_that_pip_offers(machine):
    import torch_build

    assert choice(machine(gpu=False, offers={torch_build.TESTED: CPU})) == (torch_build.TESTED, None)
    assert choice(machine(gpu=False, offers={torch_build.TESTED: CUDA, "torch": CPU})) == ("torch", None)


@pytest.mark.parametrize("requires", [CUDA, NEWER_CUDA])
def test_no_gigabytes_of_cuda_without_a_gpu(machine, requires):
    import torch_build

    build = machine(gpu=False, offers={torch_build.TESTED: requires, "torch": requires})
    assert choice(build) == ("torch", "cpu")
    assert choice(build, any_torch=True) == ("torch", None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.10  Fri Jan 24\nGCC version: 12", 570),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build", 580),
        ("something else", None),
    ],
)
def test_driver_version(monkeypatch, text, expected):
    import torch_build

    monkeypatch.setattr(torch_build.Path, "read_text", lambda self: text)
    assert torch_build.driver_version() == expected
