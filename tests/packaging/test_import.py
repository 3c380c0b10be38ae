"""What importing costs and does: little time, no CUDA, no file, no process."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

MODULES = ("attention", "gemm", "comm", "sampling", "logits_processor")
LONGEST_SECONDS = 0.3  # beyond `import torch`
TRIES = 5  # the machine may be busy: the best counts
PROBE = """
import json, sys, time
import torch

before = set(sys.modules)
events = []

def watch(event, arguments):
    if event == "open":
        path, mode, flags = arguments
        if isinstance(path, (str, bytes)) and flags & 3:  # O_WRONLY or O_RDWR
            events.append(f"opens {path} for writing")
    elif event in ("os.mkdir", "os.rename", "os.remove", "os.symlink", "os.truncate"):
        events.append(f"{event} {arguments}")
    elif event in ("subprocess.Popen", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn"):
        events.append(f"starts {arguments}")
    elif event == "ctypes.dlopen" and "cuda" in str(arguments):
        events.append(f"loads {arguments}")

sys.addaudithook(watch)
start = time.perf_counter()
__import__(sys.argv[1])
seconds = time.perf_counter() - start
print(json.dumps({
    "seconds": seconds,
    "events": events,
    "modules": sorted(set(sys.modules) - before),
    "cuda": torch.cuda.is_initialized(),
}))
"""


def imported(module, home):
    command = [sys.executable, "-c", PROBE, module]
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    env.pop("WARPLOOM_CACHE_DIR", None)
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=home)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module", params=MODULES)
def answer(request, tmp_path_factory):
    """The import of one module in a fresh process whose home is an empty folder."""
    home = tmp_path_factory.mktemp("home")
    home.chmod(0o500)
    best = imported(f"warploom.{request.param}", home)
    for _ in range(TRIES - 1):
        if best["seconds"] <= LONGEST_SECONDS:
            break
        best = min(best, imported(f"warploom.{request.param}", home), key=lambda found: found["seconds"])
    return {**best, "home": home}


def test_time(answer):
    assert answer["seconds"] <= LONGEST_SECONDS


def test_starts_nothing_and_writes_nothing(answer):
    assert answer["events"] == []
    assert list(answer["home"].iterdir()) == []


def test_initialises_no_cuda(answer):
    assert not answer["cuda"]


def test_leaves_heavy_modules_alone(answer):
    heavy = ("cuda.bindings", "cuda.core", "triton", "mpi4py", "matplotlib", "yaml", "pytest")
    found = [module for module in answer["modules"] if module.startswith(heavy)]
    assert found == []
