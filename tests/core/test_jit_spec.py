"""Specs, parameter structs, header hashes and keys."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import toy_kernels as toy

from warploom.core.errors import ArgumentError, CompileError
from warploom.core.jit import HeaderLibrary, KernelSpec, ParamStruct, compile_spec, cpp_type, f32, i32, ptr
from warploom.core.jit.build import _options, key_of
from warploom.core.jit.compilers import get_compiler
from warploom.core.jit.headers import hash_includes, include_folders


class MixedParams(ParamStruct):
    cpp_name = "test::MixedParams"
    flag: i32
    data: ptr
    peers: Annotated[ptr, 3]
    scale: f32


def test_layout_has_the_compilers_padding():
    packed = MixedParams(flag=1, data=None, peers=[1, 2, 3], scale=2.0).packed
    assert len(packed) == 48
    assert packed[8:16] == bytes(8)
    assert packed[16] == 1
    assert packed[32] == 3


def test_pointers_take_tensors():
    x = torch.zeros(4)
    packed = MixedParams(flag=0, data=x, peers=[x, None, 0], scale=0.0).packed
    assert int.from_bytes(packed[8:16], "little") == x.data_ptr()


def test_missing_and_unknown_fields_raise():
    with pytest.raises(KeyError):
        MixedParams(flag=1)
    with pytest.raises(TypeError, match="no field colour"):
        MixedParams(flag=1, data=None, peers=[0, 0, 0], scale=1.0, colour=1)


def write_header(folder, fields):
    folder.joinpath("layout.cuh").write_text(
        '#pragma once\n#include "warploom/common.cuh"\n'
        f"namespace test {{ struct MixedParams {{ {fields} }}; template <class C> "
        "__global__ void k(const __grid_constant__ MixedParams) {} }\n"
    )
    return KernelSpec(
        family="test",
        header="layout.cuh",
        kernel="test::k",
        config={},
        params=(MixedParams,),
        include_dirs=(str(folder),),
    )


def test_layout_that_differs_from_the_header_does_not_compile(tmp_path):
    good = write_header(tmp_path, "int flag; void* data; void* peers[3]; float scale;")
    compile_spec(good, "sm_90a")
    swapped = write_header(tmp_path, "float scale; void* data; void* peers[3]; int flag;")
    with pytest.raises(CompileError, match="MixedParams::"):
        compile_spec(swapped, "sm_90a")
    grown = write_header(tmp_path, "int flag; void* data; void* peers[3]; float scale; double more;")
    with pytest.raises(CompileError, match="size"):
        compile_spec(grown, "sm_90a")


def test_compile_error_holds_log_and_source(tmp_path):
    spec = write_header(tmp_path, "int flag; void* data; void* peers[3]; float scale; nonsense x;")
    with pytest.raises(CompileError, match=r"(?s)nonsense.*struct Config"):
        compile_spec(spec, "sm_90a")


def test_unknown_dtype():
    assert cpp_type(torch.bfloat16) == "__nv_bfloat16"
    with pytest.raises(ArgumentError, match="complex64"):
        cpp_type(torch.complex64)


def test_specs_are_values():
    assert toy.toy("add_kernel", (toy.AddParams,), kThreads=256) == toy.ADD
    assert hash(toy.toy("add_kernel", (toy.AddParams,), kThreads=256)) == hash(toy.ADD)
    assert toy.toy("add_kernel", (toy.AddParams,), kThreads=128) != toy.ADD


def test_key_depends_on_everything_that_makes_the_code(tmp_path):
    nvrtc = get_compiler("nvrtc")
    spec = write_header(tmp_path, "int flag;")
    key = key_of(spec, "sm_90a", nvrtc)
    assert key == key_of(spec, "sm_90a", nvrtc)
    assert key != key_of(spec, "sm_80", nvrtc)
    other = [
        KernelSpec(**{**vars_of(spec), "options": ("--use_fast_math",)}),
        KernelSpec(**{**vars_of(spec), "config": {"kThreads": 1}}),
    ]
    assert len({key, *(key_of(s, "sm_90a", nvrtc) for s in other)}) == 3
    write_header(tmp_path, "int flag; int more;")
    assert key != key_of(spec, "sm_90a", nvrtc)


def library_kernel(tmp_path):
    """A kernel on a library that has functions for no side in particular, which NVRTC refuses without an option."""
    release = tmp_path / "site" / "some" / "include" / "some" / "release.h"
    release.parent.mkdir(parents=True)
    release.write_text("#define SOME_RELEASE 1\n")
    (release.parent / "some.hpp").write_text('#include "release.h"\nint one() { return SOME_RELEASE; }\n')
    (tmp_path / "own.cuh").write_text(
        "#pragma once\n#include <some/some.hpp>\n"
        "namespace test { template <class C> __global__ void k() { if (one() == 0) __trap(); } }\n"
    )
    library = HeaderLibrary(
        name="Some",
        folders=("some/include",),
        version_header="some/release.h",
        releases="SOME_RELEASE [12]",
        install="pip install some",
        nvrtc_options=("-default-device",),
    )
    spec = KernelSpec(
        family="test",
        header="own.cuh",
        kernel="test::k",
        config={},
        include_dirs=(str(tmp_path),),
        libraries=(library,),
    )
    return spec, release


def test_library_is_included_and_in_the_key(tmp_path, monkeypatch):
    spec, release = library_kernel(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    nvrtc, nvcc = get_compiler("nvrtc"), get_compiler("nvcc")
    assert compile_spec(spec, "sm_90a").entry.cubin.startswith(b"\x7fELF")
    assert (_options(spec, nvrtc), _options(spec, nvcc)) == (["-default-device"], [])
    key = key_of(spec, "sm_90a", nvrtc)
    release.write_text("#define SOME_RELEASE 2\n")
    assert key != key_of(spec, "sm_90a", nvrtc)
    release.write_text("#define SOME_RELEASE 3\n")
    with pytest.raises(CompileError, match="headers of Some"):
        key_of(spec, "sm_90a", nvrtc)


def test_library_that_is_missing_says_what_to_install(tmp_path):
    spec, _ = library_kernel(tmp_path)
    assert spec.libraries[0].why_missing() == "needs the headers of Some: pip install some"
    with pytest.raises(CompileError, match="pip install some"):
        compile_spec(spec, "sm_90a")


def vars_of(spec):
    names = ("family", "header", "kernel", "config", "params", "options", "include_dirs")
    return {name: getattr(spec, name) for name in names}


def test_hash_follows_nested_includes(tmp_path):
    (tmp_path / "a.cuh").write_text('#include "inner/b.cuh"\n')
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "b.cuh").write_text('#include "c.cuh"\n#include <not_anywhere>\n')
    (tmp_path / "inner" / "c.cuh").write_text("// one\n")
    folders = (tmp_path, *include_folders())
    first = hash_includes('#include "a.cuh"\n', folders)
    (tmp_path / "inner" / "c.cuh").write_text("// another\n")
    assert hash_includes('#include "a.cuh"\n', folders) != first


def test_hash_survives_include_cycles(tmp_path):
    (tmp_path / "a.cuh").write_text('#include "b.cuh"\n')
    (tmp_path / "b.cuh").write_text('#include "a.cuh"\n')
    assert hash_includes('#include "a.cuh"\n', (tmp_path,))


@pytest.mark.parametrize("spec", [toy.ADD, toy.ROW_SUM, toy.CLUSTER, toy.TILE_COPY], ids=lambda s: s.stem)
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_100a", "sm_120a"])
def test_device_headers_compile_for_every_architecture(spec, arch):
    assert compile_spec(spec, arch).entry.cubin.startswith(b"\x7fELF")


# Of an extra. Their users stand alone, with it, in tests/kernels: the source of a kernel begins with its header.
EXTRA_HEADERS = {"cute/tensor.hpp"}


def included_names(path):
    return set(re.findall(r'#\s*include\s*[<"]([^>"]+)[>"]', path.read_text()))


def test_every_device_header_stands_alone():
    """Each header compiles by itself: users include them from their own C++."""
    from cuda.bindings import nvrtc

    root = include_folders()
    headers = sorted(
        path.relative_to(folder)
        for folder in root[:-1]
        for path in folder.rglob("*.cuh")
        if not included_names(path) & EXTRA_HEADERS
    )
    assert headers
    for header in headers:
        _, program = nvrtc.nvrtcCreateProgram(f'#include "{header}"\n'.encode(), b"alone.cu", 0, [], [])
        flags = [b"-arch=sm_90a", b"-std=c++17", *(f"-I{folder}".encode() for folder in root)]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(flags), flags)
        assert int(status) == 0, f"{header} does not compile alone"


def test_headers_include_only_their_own_and_cudas_number_types():
    allowed = {"cuda_bf16.h", "cuda_fp16.h", "cuda_fp8.h", *EXTRA_HEADERS}
    for folder in include_folders()[:-1]:
        for path in folder.rglob("*.cuh"):
            for name in included_names(path):
                assert name.startswith("warploom/") or name in allowed, f"{path} includes {name}"


def test_importing_the_jit_loads_no_cuda_library():
    program = (
        "import sys, torch; before = set(sys.modules); import warploom.core.jit; "
        "print(any(name.startswith('cuda') for name in set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
