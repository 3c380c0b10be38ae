"""The command: it works on any machine, says what is wrong in one line, and never shows a traceback."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch

from warploom.core.backends import OPERATORS, Backend, Operator, Support
from warploom.core.cli import build, explain, main
from warploom.core.errors import ArgumentError
from warploom.core.jit import KernelSpec
from warploom.core.problem import Problem
from warploom.core.settings import SETTINGS
from warploom.core.shipped import installed_families, shipped_kernels


@pytest.fixture
def command(capsys):
    def run(*argv: str) -> tuple[int, str, str]:
        code = main(argv)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WARPLOOM_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_no_command_prints_the_help(command):
    code, out, _ = command()
    assert code == 2
    assert "explain" in out


@pytest.mark.parametrize("name", [(), ("info",), ("explain",), ("build",), ("cache",), ("cache", "clear")])
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*name, "--help"])
    assert stop.value.code == 0
    assert len(capsys.readouterr().out.splitlines()) > 5


def test_the_module_runs_as_a_program():
    command = [sys.executable, "-m", "warploom.core.cli", "explain", "nothing_like_it"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"warploom: explain: `operator` must be .*\n", done.stderr)


# info


def test_info_shows_every_section_and_setting(command, empty_cache):
    code, out, _ = command("info")
    assert code == 0
    for title in ("versions:", "families:", "GPUs:", "compilers:", "cache:", "settings:"):
        assert f"\n{title}" in f"\n{out}"
    for row in SETTINGS.values():
        assert row.variable in out
    assert str(empty_cache) in out
    assert torch.__version__ in out


def test_info_as_json(command, monkeypatch):
    monkeypatch.setenv("WARPLOOM_LOG", "off")
    found = json.loads(command("info", "--json")[1])
    assert found["settings"]["WARPLOOM_LOG"].startswith("off (from the environment)")
    assert found["cache"]["writable"] == "yes"
    assert found["GPUs"]


def test_info_names_an_unreadable_setting(command, monkeypatch):
    monkeypatch.setenv("WARPLOOM_CACHE", "maybe")
    code, out, _ = command("info")
    assert code == 0
    assert "INVALID: settings: `WARPLOOM_CACHE` must be bool, got 'maybe'" in out


def test_info_says_how_to_get_a_missing_family(command, monkeypatch):
    monkeypatch.setattr("warploom.core.families.installed", dict)
    assert "gemm       not installed: pip install warploom-gemm" in command("info")[1]


# explain


@dataclass(frozen=True, kw_only=True)
class ToyProblem(Problem):
    batch: int
    dtype: torch.dtype = torch.float32
    causal: bool = False
    window: int | None = None
    scale: float = 1.0
    layout: str = "NHD"
    granularity: tuple[int, ...] = (1, 128)


class ToyCuda(Backend):
    name = "cuda"
    needs_gpu = True
    min_arch = 80

    def supports(self, problem: ToyProblem) -> Support:
        return Support.of((problem.batch < 8, f"batch {problem.batch} is over 7"), (not problem.causal, "no masks"))

    def run(self, problem):
        pass


class ToyReference(Backend):
    name = "reference"

    def supports(self, problem: ToyProblem) -> Support:
        return Support()

    def run(self, problem):
        pass


@pytest.fixture
def toy():
    yield Operator("cli_toy", family="toy", backends=(ToyCuda(), ToyReference()))
    del OPERATORS["cli_toy"]


@pytest.mark.usefixtures("toy")
def test_explain_lists_operators_with_their_backends(command):
    code, out, _ = command("explain")
    assert code == 0
    assert re.search(r"^toy:\n  cli_toy +cuda, reference$", out, re.MULTILINE)


@pytest.mark.usefixtures("toy")
def test_explain_describes_the_fields(command):
    out = command("explain", "cli_toy")[1]
    assert "  batch=<int>  required" in out
    assert "  dtype=<dtype>  default float32" in out
    assert "  window=<int | None>  default None" in out


@pytest.mark.usefixtures("toy")
def test_explain_prints_the_table_of_a_described_request(command):
    out = command("explain", "cli_toy", "batch=9", "causal=true", "arch=90")[1]
    assert "cuda       no: batch 9 is over 7; no masks" in out
    assert "taken: reference" in out
    assert "> cuda       yes" in command("explain", "cli_toy", "batch=1", "arch=90")[1]
    assert "needs sm_80 or later, this is sm_75" in command("explain", "cli_toy", "batch=1", "arch=75")[1]
    assert "needs tensors on an NVIDIA GPU" in command("explain", "cli_toy", "batch=1", "device_type=cpu")[1]


@pytest.mark.usefixtures("toy")
def test_explain_with_a_backend_shows_what_asking_for_it_gives(command):
    out = command("explain", "cli_toy", "batch=9", "arch=90", "--backend", "cuda")[1]
    assert "taken: none (cuda refuses; backend='cuda')" in out


def test_explain_reads_values_by_the_type_of_the_field(toy):
    given = ["batch=2", "dtype=bfloat16", "causal=1", "window=none", "scale=0.5", "layout=HND", "granularity=128,128"]
    problem = explain._problem(toy, [*given, "device_type=cpu"])
    expected = ToyProblem(
        batch=2, dtype=torch.bfloat16, causal=True, scale=0.5, layout="HND", granularity=(128, 128)
    )  # fmt: skip
    assert problem == expected
    assert explain._problem(toy, ["batch=2", "window=5"]).window == 5


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["cli_to"], "Did you mean cli_toy"),
        (["cli_toy", "batch"], "must be given as key=value, got 'batch'"),
        (["cli_toy", "batches=1"], "got unknown. Did you mean batch?"),
        (["cli_toy", "causal=1"], "`batch` must be given, got no batch."),
        (["cli_toy", "batch=x"], "`batch` must be of type int, got 'x'"),
        (["cli_toy", "batch=1", "causal=perhaps"], "`causal` must be true or false, got 'perhaps'"),
        (["cli_toy", "batch=1", "dtype=float7"], "`dtype` must be a torch dtype"),
        (["cli_toy", "batch=1", "--backend", "cudda"], "`backend` must be 'auto' or one of cuda, reference"),
    ],
)
def test_explain_refuses_in_one_line(command, argv, message):
    code, _, err = command("explain", *argv)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_every_operator_can_be_described():
    for operator in explain._operators().values():
        assert issubclass(explain._problem_type(operator), Problem), operator.name


# build and cache


KERNEL = KernelSpec(
    family="toy", header="warploom/common.cuh", kernel="toy::scale_kernel", config={"In": "float", "kThreads": 128}
)


@pytest.fixture
def family(monkeypatch):
    """A family with three instances of two kernels."""
    half = KernelSpec(**{**vars_of(KERNEL), "config": {"In": "__half", "kThreads": 128}})
    other = KernelSpec(**{**vars_of(KERNEL), "kernel": "toy::copy_kernel", "archs": ("sm_90a",), "config": {"kVec": 4}})

    def shipped(wanted=None):
        for name in wanted or ():
            if name != "toy":
                raise ArgumentError(f"no family {name}")
        return {"toy": [KERNEL, half, other]}

    monkeypatch.setattr("warploom.core.shipped.shipped_kernels", shipped)


def vars_of(spec: KernelSpec) -> dict:
    return {
        name: getattr(spec, name) for name in ("family", "header", "kernel", "config", "params", "options", "archs")
    }


@pytest.fixture
def written(tmp_path):
    def write(text: str):
        path = tmp_path / "kernels.yaml"
        path.write_text(text)
        return path

    return write


@pytest.mark.usefixtures("family")
def test_build_lists_select_shipped_instances(written):
    path = written("schema: 1\nkernels:\n  - family: toy\n  - {family: toy, kernel: scale_kernel, archs: [sm_100a]}\n")
    assert [(s.name, archs) for s, archs in build.select_kernels(path)] == [
        ("scale_kernel<In=float, kThreads=128>", ("sm_80", "sm_90a")),
        ("scale_kernel<In=__half, kThreads=128>", ("sm_80", "sm_90a")),
        ("copy_kernel<kVec=4>", ("sm_90a",)),
        ("scale_kernel<In=float, kThreads=128>", ("sm_100a",)),
        ("scale_kernel<In=__half, kThreads=128>", ("sm_100a",)),
    ]


@pytest.mark.usefixtures("family")
def test_build_lists_narrow_by_values_and_name_new_instances(written):
    head = "schema: 1\nkernels:\n  - family: toy\n    kernel: toy::scale_kernel\n    config: "
    assert [s.config["In"] for s, _ in build.select_kernels(written(head + "{In: __half}"))] == ["__half"]
    ((new, _),) = build.select_kernels(written(head + "{In: __nv_bfloat16, kThreads: 256}"))
    assert new.config == {"In": "__nv_bfloat16", "kThreads": 256}
    assert new.kernel == KERNEL.kernel


@pytest.mark.usefixtures("family")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("schema: 2\nkernels: []", "kernels.yaml:1: `schema` must be 1, the version that this release reads, got 2."),
        ("schema: 1", "`kernels` must be given"),
        ("schema: 1\nkernels: [toy]", "kernels.yaml:2: `kernels` must be a list of mappings with 'family', got 'toy'"),
        (
            "schema: 1\nkernels:\n  - {family: other}",
            "kernels.yaml:3: `family` must be an installed family, got 'other'",
        ),
        ("schema: 1\nkernels:\n  - {family: toy, kernel: x}", "a kernel of toy (copy_kernel, scale_kernel), got 'x'"),
        (
            "schema: 1\nkernels:\n  - {family: toy, kernels: x}",
            "`kernels` must be one of family, kernel, config, archs",
        ),
        ("schema: 1\nkernels:\n  - {family: toy, config: {}}", "`config` must be given together with 'kernel'"),
        (
            "schema: 1\nkernels:\n  - {family: toy, kernel: scale_kernel, config: {Out: float}}",
            "`config` must be values of a shipped instance, or all of In, kThreads for a new one, got unknown Out",
        ),
    ],
)
def test_build_refuses_bad_lists_in_one_line(command, written, text, message):
    code, _, err = command("build", str(written(text)))
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "give either a list of kernels or --family"),
        (["kernels.yaml", "--family", "all"], "give either a list of kernels or --family"),
        (["--family", "nothing"], "`family` must be an installed family"),
        (["--family", "all", "--jobs", "0"], "`--jobs` must be a positive number, got 0"),
        (["missing.yaml"], "missing.yaml: cannot be read"),
    ],
)
def test_build_refuses_bad_arguments_in_one_line(command, argv, message):
    code, _, err = command("build", *argv)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.usefixtures("family")
def test_build_refuses_a_folder_that_would_keep_nothing(command, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    assert "cannot write to" in command("build", "--family", "toy", "--cache-dir", str(tmp_path / "file"))[2]
    monkeypatch.setenv("WARPLOOM_CACHE", "0")
    assert "the kernel cache is off" in command("build", "--family", "toy")[2]


@pytest.mark.usefixtures("family")
def test_a_compiler_log_is_shown_on_demand_only(command):
    """The toy kernel is defined nowhere, so that it does not compile."""
    code, _, err = command("build", "--family", "toy", "--arch", "sm_90a", "--jobs", "1")
    assert code == 2
    assert re.fullmatch(
        r"warploom: .*could not compile scale_kernel.* \(and \d+ more lines: warploom --verbose …\)\n", err
    )
    assert "error: " in command("--verbose", "build", "--family", "toy", "--arch", "sm_90a", "--jobs", "1")[2]


def test_build_fills_a_folder_that_cache_commands_then_look_after(command, monkeypatch, tmp_path, written):
    """The cheapest shipped kernel of the installed families, for one architecture."""
    specs = [spec for specs in shipped_kernels().values() for spec in specs]
    if not specs:
        pytest.skip("no installed family ships kernels")
    spec, folder = specs[0], tmp_path / "image"
    values = ", ".join(f"{key}: {json.dumps(value)}" for key, value in spec.config.items())
    path = written(f"schema: 1\nkernels:\n  - {{family: {spec.family}, kernel: {spec.stem}, config: {{{values}}}}}\n")
    arguments = ("build", str(path), "--arch", spec.archs[-1], "--cache-dir", str(folder))
    assert f"{spec.name}  {spec.archs[-1]}\n" in command(*arguments, "--dry-run")[1].replace(f"{spec.family}  ", "")
    assert not folder.exists()
    assert "1 compiled, 0 were cached" in command(*arguments)[1]
    assert "0 compiled, 1 were cached" in command(*arguments)[1]

    monkeypatch.setenv("WARPLOOM_CACHE_DIR", str(folder))
    listed = command("cache", "ls")[1]
    assert spec.name in listed
    assert "1 kernels" in listed
    assert "0 kernels" in command("cache", "ls", "--family", "other")[1]
    assert command("cache", "verify")[:2] == (0, f"1 kernels are intact in {folder}\n")
    (entry,) = folder.glob("*/*.cubin")
    entry.write_bytes(entry.read_bytes()[:-7])
    assert "damaged" in command("cache", "ls")[1]
    code, out, _ = command("cache", "verify")
    assert code == 1
    assert f"damaged, removed: {entry}" in out
    command(*arguments)
    assert "removed 0 kernels" in command("cache", "clear", "--family", "other")[1]
    assert "removed 1 kernels" in command("cache", "clear")[1]
    assert not list(folder.glob("*/*.cubin"))


def test_cache_commands_work_without_a_cache(command, empty_cache):
    assert command("cache", "ls")[1] == f"0 kernels, 0.0 MiB in {empty_cache}\n"
    assert command("cache", "clear")[0] == 0
    assert command("cache", "verify")[0] == 0
    assert not empty_cache.exists()


@pytest.mark.skipif(os.getuid() == 0, reason="root reads every file")
def test_an_unreadable_cache_is_one_line(command, empty_cache):
    (empty_cache / "toy").mkdir(parents=True)
    (empty_cache / "toy" / "k.cubin").write_bytes(b"x")
    (empty_cache / "toy" / "k.cubin").chmod(0)
    code, _, err = command("cache", "ls")
    assert code == 2
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", installed_families())
def test_shipped_kernels_are_distinct_and_of_their_family(name):
    specs = shipped_kernels([name])[name]
    assert len({spec.source for spec in specs}) == len(specs)
    assert {spec.family for spec in specs} <= {name}
