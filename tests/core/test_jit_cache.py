"""The kernel cache under races, kills, corruption, full disks and read-only homes; the builder."""

import errno
import io
import os
import signal
import stat
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
import toy_kernels as toy

from warploom.core.errors import CompileError, PerformanceWarning
from warploom.core.jit import build, compile_spec
from warploom.core.jit import cache as cache_module
from warploom.core.jit.build import Progress
from warploom.core.jit.cache import CacheEntry, KernelCache
from warploom.core.settings import settings


@pytest.fixture
def cache(tmp_path):
    return KernelCache(tmp_path / "cache")


def only_entry(cache):
    (path,) = cache.entries()
    return path


def test_second_time_comes_from_the_cache(cache):
    first = compile_spec(toy.ADD, "sm_90a", cache=cache)
    second = compile_spec(toy.ADD, "sm_90a", cache=cache)
    assert (first.from_cache, second.from_cache) == (False, True)
    assert first.entry.cubin == second.entry.cubin
    assert second.entry.record["kernel"] == "warploom::test::add_kernel"
    assert only_entry(cache).with_suffix(".cu").read_text() == toy.ADD.source


def test_files_and_folders_are_private(cache):
    compile_spec(toy.ADD, "sm_90a", cache=cache)
    path = only_entry(cache)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@given(cubin=st.binary(min_size=1, max_size=200), cut=st.integers(0, 400), flip=st.integers(0, 10_000))
def test_any_truncation_or_flip_is_noticed(cubin, cut, flip):
    packed = CacheEntry(cubin, {"name": "x"}).pack()
    assert CacheEntry.unpack(packed) == CacheEntry(cubin, {"name": "x"})
    if cut < len(packed):
        assert CacheEntry.unpack(packed[:cut]) is None
    damaged = bytearray(packed)
    damaged[flip % len(packed)] ^= 0x10
    found = CacheEntry.unpack(bytes(damaged))
    assert found is None or found.cubin == cubin  # a flip inside the record's text may survive, never one in the code


@pytest.mark.parametrize("damage", [b"", b"short", b"\x7fELF" + bytes(5000)])
def test_damaged_entry_is_rebuilt(cache, damage):
    compile_spec(toy.ADD, "sm_90a", cache=cache)
    path = only_entry(cache)
    path.write_bytes(damage)
    again = compile_spec(toy.ADD, "sm_90a", cache=cache)
    assert not again.from_cache
    assert compile_spec(toy.ADD, "sm_90a", cache=cache).from_cache


def test_entry_that_others_can_write_is_not_loaded(cache):
    compile_spec(toy.ADD, "sm_90a", cache=cache)
    os.chmod(only_entry(cache), 0o666)
    with pytest.warns(PerformanceWarning, match="can be written by others"):
        assert not compile_spec(toy.ADD, "sm_90a", cache=cache).from_cache


COMPILE_IN_A_PROCESS = """
import sys; sys.path.insert(0, {here!r})
import toy_kernels as toy
from warploom.core.jit import compile_spec
from warploom.core.jit.cache import KernelCache
for _ in range({times}):
    for threads in {threads}:
        spec = toy.toy("add_kernel", (toy.AddParams,), kThreads=threads)
        entry = compile_spec(spec, "sm_90a", cache=KernelCache({root!r})).entry
        assert entry.cubin.startswith(b"\\x7fELF")
    if {times} > 1:
        KernelCache({root!r}).clear()
print("done")
"""


def start_process(root, threads=(32, 64, 96), times=1):
    program = COMPILE_IN_A_PROCESS.format(here=str(Path(__file__).parent), root=str(root), threads=threads, times=times)
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_processes_race_safely(cache):
    processes = [start_process(cache.root) for _ in range(4)]
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert out.strip() == "done", err
    assert cache.verify() == (3, [])
    assert not list(cache.root.glob("*/*.tmp"))


def test_processes_race_with_one_that_clears(cache):
    processes = [start_process(cache.root, times=4) for _ in range(3)]
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert out.strip() == "done", err


def test_kill_in_mid_write_leaves_a_usable_cache(cache):
    """Whatever the moment of the kill, the next process gets a right kernel and the folder stays verifiable."""
    for delay in (0.0, 0.02, 0.05, 0.1):
        process = start_process(cache.root, times=50)
        while not list(cache.root.glob("*/*")) and process.poll() is None:
            time.sleep(0.005)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        _, damaged = cache.verify()
        assert damaged == []
    assert compile_spec(toy.ADD, "sm_90a", cache=cache).entry.cubin.startswith(b"\x7fELF")


def test_stale_temporary_files_are_removed_and_fresh_ones_kept(cache):
    compile_spec(toy.ADD, "sm_90a", cache=cache)
    folder = only_entry(cache).parent
    stale, fresh = folder / ".a-1.tmp", folder / ".b-2.tmp"
    stale.write_bytes(b"x")
    fresh.write_bytes(b"x")
    os.utime(stale, (1, 1))
    cache.verify()
    assert not stale.exists()
    assert fresh.exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_full_or_read_only_disk_costs_only_the_caching(cache, monkeypatch, number):
    def refuse(handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(cache_module.os, "fsync", refuse)
    with pytest.warns(PerformanceWarning, match="WARPLOOM_CACHE_DIR"):
        result = compile_spec(toy.ADD, "sm_90a", cache=cache)
    assert result.entry.cubin.startswith(b"\x7fELF")
    assert list(cache.entries()) == []
    assert not list(cache.root.glob("*/*.tmp"))


def test_cache_below_a_file_is_not_a_crash(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(PerformanceWarning, match="kernel cache"):
        assert compile_spec(toy.ADD, "sm_90a", cache=KernelCache(tmp_path / "file" / "cache")).entry.cubin


def test_it_complains_once(tmp_path):
    (tmp_path / "file").write_text("")
    cache = KernelCache(tmp_path / "file" / "cache")
    with pytest.warns(PerformanceWarning):
        compile_spec(toy.ADD, "sm_90a", cache=cache)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compile_spec(toy.ADD, "sm_90a", cache=cache)


def test_caching_can_be_switched_off(tmp_path):
    with settings.override(cache=False, cache_dir=tmp_path / "c"):
        assert not compile_spec(toy.ADD, "sm_90a").from_cache
    assert not (tmp_path / "c").exists()


def test_threads_share_one_compilation(cache):
    spec = toy.toy("add_kernel", (toy.AddParams,), kThreads=160)
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(compile_spec(spec, "sm_90a", cache=cache))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(not r.from_cache for r in results) == 1


def test_build_returns_in_order_and_reports(cache):
    seen = []
    results = build([toy.ADD, toy.ROW_SUM], ["sm_80", "sm_90a"], cache=cache, jobs=2, done=seen.append)
    assert [(r.spec.stem, r.arch) for r in results] == [
        ("add_kernel", "sm_80"), ("add_kernel", "sm_90a"), ("row_sum_kernel", "sm_80"), ("row_sum_kernel", "sm_90a")
    ]  # fmt: skip
    assert len(seen) == 4


def test_build_raises_the_first_failure(cache, tmp_path):
    (tmp_path / "broken.cuh").write_text("#error broken on purpose\n")
    broken = toy.KernelSpec(family="test", header="broken.cuh", kernel="x::k", config={}, include_dirs=(str(tmp_path),))
    with pytest.raises(CompileError, match="broken on purpose"):
        build([broken, toy.ADD], ["sm_90a"], cache=cache)


def test_progress_bar():
    stream = io.StringIO()
    with settings.override(progress=True):
        bar = Progress(2, "compiling", stream)
        bar.step("a")
        bar.step("b")
    assert "1/2 a" in stream.getvalue()
    assert stream.getvalue().endswith("\n")
    quiet = io.StringIO()
    with settings.override(progress=True):
        Progress(1, "compiling", quiet).step("a")
    assert quiet.getvalue() == ""


def test_clear_removes_everything(cache):
    build([toy.ADD, toy.ROW_SUM], ["sm_90a"], cache=cache)
    assert cache.clear() == 2
    assert not list(cache.root.glob("*/*"))


def test_missing_nvcc_says_what_to_do(tmp_path, cache):
    with settings.override(nvcc=tmp_path / "nvcc"), pytest.raises(CompileError, match="WARPLOOM_COMPILER=nvrtc"):
        compile_spec(toy.ADD, "sm_90a", compiler="nvcc", cache=cache)


def test_missing_nvrtc_says_what_to_install(cache, monkeypatch):
    from cuda.bindings import nvrtc

    def refuse():
        raise RuntimeError("libnvrtc.so not found")

    monkeypatch.setattr(nvrtc, "nvrtcVersion", refuse)
    with pytest.raises(CompileError, match=r"pip install 'warploom-core\[cu13\]'"):
        compile_spec(toy.ADD, "sm_90a", cache=cache)


def test_nvcc_compiles_the_same_source(cache):
    from warploom.core.jit.compilers.nvcc import find_nvcc

    if find_nvcc() is None:
        pytest.skip("no nvcc on this machine")
    result = compile_spec(toy.ADD, "sm_90a", compiler="nvcc", cache=cache)
    assert result.entry.cubin.startswith(b"\x7fELF")
    assert result.entry.record["compiler"].startswith("nvcc-")
