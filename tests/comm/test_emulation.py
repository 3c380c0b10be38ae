"""The collectives' source run on host threads: mailboxes, chunks, tails, call counters, failures."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from warploom import comm, core

HERE = Path(__file__).parent / "emulation"
EXCHANGE = 7  # number of the kernel in collectives_on_host.cpp


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("needs a host C++ compiler")
    binary = tmp_path_factory.mktemp("emulation") / "collectives_on_host"
    folders = [HERE, Path(comm.__file__).parent / "include", Path(core.__file__).parent / "include"]
    command = [compiler, "-std=c++20", "-O1", "-pthread", *(f"-I{folder}" for folder in folders)]
    built = subprocess.run([*command, HERE / "collectives_on_host.cpp", "-o", binary], capture_output=True, text=True)
    if "fatal error" in built.stderr or "std=c++20" in built.stderr:
        pytest.skip("the host C++ compiler has no C++20 library")
    assert built.returncode == 0, built.stderr
    return binary


def run(program, *arguments):
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_thousands_of_mixed_calls_with_skewed_ranks(program, ranks):
    run(program, ranks, 2000, ranks)


@pytest.mark.parametrize("ranks", [2, 4])
def test_exchanges_of_messages_many_times_the_rings(program, ranks):
    run(program, ranks, 100, ranks, "all", EXCHANGE)


@pytest.mark.parametrize("only", [(), (EXCHANGE,)], ids=["mixed", "exchange"])
@pytest.mark.parametrize("ranks", [2, 4])
def test_a_missing_rank_is_reported_by_all_others(program, ranks, only):
    output = run(program, ranks, 10, 1, "missing", *only)
    reports = [tuple(map(int, re.findall(r"\d+", line))) for line in output.splitlines()]
    for rank, failed, call, peer, *_ in reports[:-1]:
        assert (failed, call, peer) == (1, 5, ranks - 1), f"rank {rank}: {output}"
    assert any(report[4] == 0 for report in reports[:-1]), "nobody gave up by itself"


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_rank_that_calls_something_else_is_reported_by_all(program, ranks):
    output = run(program, ranks, 10, 1, "other")
    reports = [tuple(map(int, re.findall(r"\d+", line))) for line in output.splitlines()]
    for rank, failed, call, peer, _, own, others in reports:
        assert (failed, call) == (1, 5), f"rank {rank}: {output}"
        assert (peer == ranks - 1) == (rank != ranks - 1)
        assert own >> 48 == others >> 48 == call + 1
        assert {own >> 40 & 0xFF, others >> 40 & 0xFF} == {5, 6}, "fused, in one trip and in two"
