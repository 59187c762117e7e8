"""Classifies exceptions of torch, CUDA and the libraries on top of CUDA.

Libraries on top of CUDA raise exception types of their own or plain RuntimeErrors, so the type's name and the text decide.
"""

OUT_OF_MEMORY = (
    "out of memory",
    "allocate memory",
    "unable to allocate",
    "_alloc_failed",
    "_allocation_failed",
    "cudaerrormemoryallocation",
    "cuda_error_out_of_memory",
)
"""Parts of the texts of errors that only say that memory ran out, in lower case: from the driver, cuBLAS, cuDNN, cuFFT,
NumPy, and torch on a CPU."""

DEVICE_FAILURE = (
    "cuda error",
    "cuda runtime error",
    "cuda driver error",
    "cuda failure",
    "cudnn error",
    "cublas error",
    "cufft error",
    "acceleratorerror",
)
"""Parts of the texts and type names of all other errors of a GPU, in lower case."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out. The device remains usable: a smaller batch may fit."""
    import torch

    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or _has(error, OUT_OF_MEMORY)


def is_device_failure(error: BaseException) -> bool:
    """Whether the CUDA context of this process is unusable, so that the process has to be replaced."""
    return not is_out_of_memory(error) and _has(error, DEVICE_FAILURE)


def _has(error: BaseException, signs: tuple[str, ...]) -> bool:
    text = f"{type(error).__name__}: {error}".lower()
    return any(sign in text for sign in signs)
