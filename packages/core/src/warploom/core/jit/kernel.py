"""Loading compiled kernels and launching them on torch's current stream."""

from __future__ import annotations

import contextlib
import ctypes
import struct
import threading
from collections.abc import Iterator
from typing import Any

import torch

from warploom.core.calls import Kept
from warploom.core.device import arch_name, ensure_context
from warploom.core.errors import CompileError
from warploom.core.jit.build import compile_spec
from warploom.core.jit.spec import KernelSpec
from warploom.core.settings import settings

__all__ = ["Kernel", "PreparedLaunch", "load_spec"]

_PORTABLE_CLUSTER = 8
_MOST_CONFIGS = 256  # of a kernel
_load_lock = threading.Lock()


def _check(result: tuple[Any, ...], what: str) -> Any:
    status, *values = result
    if int(status) != 0:
        raise CompileError(f"{what}: {status.name}")
    return values[0] if values else None


def _triple(size: int | tuple[int, ...]) -> tuple[int, int, int]:
    if isinstance(size, int):
        return (size, 1, 1)
    return (*size, 1, 1)[:3]  # type: ignore[return-value]


@contextlib.contextmanager
def _relaxed_capture(driver: Any) -> Iterator[None]:
    """Loading a module during another stream's CUDA-graph capture is refused unless this thread says it is harmless."""
    mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
    before = _check(driver.cuThreadExchangeStreamCaptureMode(mode), "capture mode")
    try:
        yield
    finally:
        driver.cuThreadExchangeStreamCaptureMode(before)


class Kernel:
    """A loaded kernel of one device.

    Attributes
    ----------
    record : dict
        How it was compiled: arch, compiler, seconds, log with registers and spills.
    """

    def __init__(self, cubin: bytes, record: dict[str, Any], device: int) -> None:
        from cuda.bindings import driver

        ensure_context(device)
        self.record = record
        self.device = device
        self._driver = driver
        self._smem_limit = 0  # asked for; without asking static and dynamic shared memory together may have 48 KB
        self._cluster_limit = _PORTABLE_CLUSTER
        self._configs: Kept[Any, Any] = Kept(_MOST_CONFIGS)
        with _relaxed_capture(driver), torch.cuda.device(device):
            self._library = _check(driver.cuLibraryLoadData(cubin, [], [], 0, [], [], 0), "loading a kernel")
            (self._kernel,) = _check(driver.cuLibraryEnumerateKernels(1, self._library), "finding the kernel")
            # Resolving the function now keeps lazy loading out of the first launch, which may be inside a capture.
            _check(driver.cuKernelGetFunction(self._kernel), "loading a kernel")
        self._function = driver.CUfunction(int(self._kernel))
        self._cu_device = _check(driver.cuDeviceGet(device), "device")

    def launch(
        self,
        grid: int | tuple[int, ...],
        block: int | tuple[int, ...],
        *args: Any,
        smem: int = 0,
        cluster: int | tuple[int, ...] | None = None,
        pdl: bool = False,
        stream: int | None = None,
    ) -> None:
        """Launch on the current torch stream of the device, which the caller has made current.

        Parameters
        ----------
        grid, block : int or tuple of int
            Blocks and threads. An empty grid launches nothing.
        *args : ParamStruct or TensorMap
            The kernel's parameters: anything with a ctypes ``buffer``.
        smem : int
            Dynamic shared memory in bytes, up to 227 KB on sm_90.
        cluster : int or tuple of int, optional
            Blocks of a thread-block cluster.
        pdl : bool
            Programmatic dependent launch: the kernel may start before the previous one of the stream has ended, and
            must call ``griddepcontrol.wait`` before it reads what that one wrote.
        stream : int, optional
            A raw stream instead of torch's current one.
        """
        blocks, threads = _triple(grid), _triple(block)
        if 0 in blocks:
            return
        if smem > self._smem_limit:
            self._raise_smem(smem)
        if stream is None:
            stream = torch._C._cuda_getCurrentRawStream(self.device)
        ensure_context(self.device)
        pointers = (ctypes.c_void_p * len(args))(*[ctypes.addressof(arg.buffer) for arg in args])
        driver = self._driver
        if cluster is None and not pdl:
            (status,) = driver.cuLaunchKernel(
                self._function, *blocks, *threads, smem, stream, ctypes.addressof(pointers), 0
            )
        else:
            config = self._config(blocks, threads, smem, cluster, pdl)
            config.hStream = stream
            (status,) = driver.cuLaunchKernelEx(config, self._function, ctypes.addressof(pointers), 0)
        if int(status) != 0:
            name = self.record.get("name", "kernel")
            raise CompileError(f"launching {name} with grid {blocks}, block {threads}, {smem} bytes: {status.name}")

    def prepare(
        self,
        grid: int | tuple[int, ...],
        block: int | tuple[int, ...],
        *args: Any,
        smem: int = 0,
        cluster: int | tuple[int, ...] | None = None,
        pdl: bool = False,
        pointers: int = 0,
        parameter: int = 0,
    ) -> PreparedLaunch:
        """The same launch again and again, in a fraction of the time; arguments as `launch`.

        Parameters
        ----------
        pointers : int
            How many pointers at the start of one parameter are given anew each time.
        parameter : int
            Which parameter that is.
        """
        if smem > self._smem_limit:
            self._raise_smem(smem)
        shape = _triple(grid), _triple(block), smem
        config = self._new_config(*shape, cluster, pdl) if pdl or cluster is not None else None
        return PreparedLaunch(self, shape, args, config, pointers, parameter)

    def _config(self, blocks: Any, threads: Any, smem: int, cluster: int | tuple[int, ...] | None, pdl: bool) -> Any:
        """The extended launch configuration, built once for each shape."""
        key = (blocks, threads, smem, cluster, pdl, threading.get_ident())
        config = self._configs.get(key)
        if config is not None:
            return config
        return self._configs.keep(key, self._new_config(blocks, threads, smem, cluster, pdl))

    def _new_config(
        self, blocks: Any, threads: Any, smem: int, cluster: int | tuple[int, ...] | None, pdl: bool
    ) -> Any:
        driver = self._driver
        config = driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = blocks
        config.blockDimX, config.blockDimY, config.blockDimZ = threads
        config.sharedMemBytes = smem
        attributes = []
        if cluster is not None:
            x, y, z = _triple(cluster)
            self._allow_cluster(x * y * z)
            attribute = driver.CUlaunchAttribute()
            attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
            attribute.value.clusterDim.x, attribute.value.clusterDim.y, attribute.value.clusterDim.z = x, y, z
            attributes.append(attribute)
        if pdl:
            attribute = driver.CUlaunchAttribute()
            attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
            attribute.value.programmaticStreamSerializationAllowed = 1
            attributes.append(attribute)
        config.attrs = attributes
        config.numAttrs = len(attributes)
        return config

    def _raise_smem(self, smem: int) -> None:
        attribute = self._driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        self._set_attribute(attribute, smem, f"{smem} bytes of dynamic shared memory")
        self._smem_limit = smem

    def _allow_cluster(self, blocks: int) -> None:
        if blocks > self._cluster_limit:
            attribute = self._driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
            self._set_attribute(attribute, 1, f"clusters of {blocks}")
            self._cluster_limit = blocks

    def _set_attribute(self, attribute: Any, value: int, what: str) -> None:
        with _relaxed_capture(self._driver):
            _check(self._driver.cuKernelSetAttribute(attribute, value, self._kernel, self._cu_device), what)


class PreparedLaunch:
    """A launch whose parameters stay as they are, but for the first pointers of one."""

    def __init__(
        self,
        kernel: Kernel,
        shape: tuple[tuple[int, ...], tuple[int, ...], int],
        args: tuple[Any, ...],
        config: Any,
        pointers: int,
        parameter: int = 0,
    ) -> None:
        self._kernel = kernel
        self._config = config  # of a launch in clusters, or of a dependent one
        self._args = list(args)  # the launch reads their buffers
        changing = args[parameter].buffer
        self._params = (ctypes.c_char * len(changing)).from_buffer_copy(changing)
        addresses = [ctypes.addressof(arg.buffer) for arg in args]
        addresses[parameter] = ctypes.addressof(self._params)
        self._addresses = (ctypes.c_void_p * len(addresses))(*addresses)
        self._where = ctypes.addressof(self._addresses)
        self._head = struct.Struct(f"@{pointers}P")
        grid, block, smem = shape
        self._shape = (*grid, *block, smem)
        self._lock = threading.Lock()  # parameters are the launch's until it has been queued

    def launch(self, *pointers: int, more: tuple[Any, ...] | None = None) -> None:
        """Launch on the current torch stream of the kernel's device.

        Parameters
        ----------
        *pointers : int
            Addresses.
        more : tuple, optional
            In place of the arguments after the first.
        """
        kernel = self._kernel
        ensure_context(kernel.device)
        stream = torch._C._cuda_getCurrentRawStream(kernel.device)
        with self._lock:
            self._head.pack_into(self._params, 0, *pointers)
            if more is not None:
                for number, argument in enumerate(more, 1):
                    self._args[number] = argument
                    self._addresses[number] = ctypes.addressof(argument.buffer)
            if self._config is None:
                (status,) = kernel._driver.cuLaunchKernel(kernel._function, *self._shape, stream, self._where, 0)
            else:
                self._config.hStream = stream
                (status,) = kernel._driver.cuLaunchKernelEx(self._config, kernel._function, self._where, 0)
        if int(status) != 0:
            raise CompileError(f"launching {kernel.record.get('name', 'kernel')} with {self._shape}: {status.name}")


_libraries: dict[tuple[KernelSpec, str, int], Kernel] = {}


def load_spec(spec: KernelSpec, device: int) -> Kernel:
    """Compile or fetch a spec and load it on a device; equal specs share one kernel."""
    arch = settings.arch or arch_name(device)
    key = (spec, arch, device)
    with _load_lock:
        kernel = _libraries.get(key)
    if kernel is None:
        result = compile_spec(spec, arch)
        loaded = Kernel(result.entry.cubin, result.entry.record, device)
        with _load_lock:
            kernel = _libraries.setdefault(key, loaded)
    return kernel
