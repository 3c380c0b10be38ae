"""Run-time compilation: `KernelSpec` → key → compile → cache → load → launch.

=============  =====================================================================
module         what it does
=============  =====================================================================
``params``     Python mirrors of the kernels' ``Params`` structs
``spec``       `KernelSpec`: which template, with which named values
``libraries``  headers of other projects that a kernel needs
``headers``    include folders; hash of everything that a source includes
``compilers``  NVRTC (default) and nvcc through ninja
``cache``      content-addressed kernel files that survive races and corruption
``build``      compile one kernel, or many at once with a progress bar
``kernel``     load and launch
=============  =====================================================================
"""

from warploom.core.jit.build import build, compile_spec
from warploom.core.jit.kernel import Kernel, PreparedLaunch
from warploom.core.jit.libraries import HeaderLibrary
from warploom.core.jit.params import Divisor, ParamStruct, divisor_fields, f32, f64, i32, i64, ptr, u32, u64
from warploom.core.jit.spec import KernelSpec, cpp_type

__all__ = [
    "Divisor",
    "HeaderLibrary",
    "Kernel",
    "KernelSpec",
    "ParamStruct",
    "PreparedLaunch",
    "build",
    "compile_spec",
    "cpp_type",
    "divisor_fields",
    "f32",
    "f64",
    "i32",
    "i64",
    "ptr",
    "u32",
    "u64",
]
