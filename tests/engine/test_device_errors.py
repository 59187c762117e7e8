"""Classification of errors: those of the CPU are raised by torch, those of the GPU have its texts."""

import pytest
import torch

from serve_app.engine.device_errors import is_device_failure, is_out_of_memory
from testing.cuda_errors import NeMoCUDAPythonException

CUDA_ADVICE = (
    "\nCUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be incorrect."
    "\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1"
    "\nCompile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n"
)


def test_a_cpu_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert not is_device_failure(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.20 GiB is free."
        ),
        torch.AcceleratorError("CUDA error: out of memory" + CUDA_ADVICE),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
        NeMoCUDAPythonException("CUDA failure! cudaError_t.cudaErrorMemoryAllocation"),
        NeMoCUDAPythonException("Cuda Error: CUresult.CUDA_ERROR_OUT_OF_MEMORY"),
        MemoryError("Unable to allocate 3.00 GiB for an array with shape (64, 25165824) and data type int16"),
    ],
    ids=lambda error: str(error).split("\n")[0],
)
def test_out_of_memory(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert not is_device_failure(error)


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: device-side assert triggered" + CUDA_ADVICE),
        torch.AcceleratorError("device-side assert triggered"),
        RuntimeError("CUDA error: an illegal memory access was encountered" + CUDA_ADVICE),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx( handle, opa, opb, m, n, k)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("cuFFT error: CUFFT_EXEC_FAILED"),
        NeMoCUDAPythonException("CUDA failure! cudaError_t.cudaErrorLaunchFailure"),
        NeMoCUDAPythonException("Cuda Runtime Error: cudaErrorIllegalAddress"),
    ],
    ids=lambda error: str(error).split("\n")[0],
)
def test_a_device_failure(error: Exception) -> None:
    assert is_device_failure(error)
    assert not is_out_of_memory(error)


def test_other_errors() -> None:
    with pytest.raises(RuntimeError) as shapes:
        torch.zeros(2, 3) @ torch.zeros(2, 3)
    for error in (shapes.value, ValueError("no tokens"), IndexError("index 3 is out of bounds")):
        assert not is_out_of_memory(error)
        assert not is_device_failure(error)
