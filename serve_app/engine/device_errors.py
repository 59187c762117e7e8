"""Classifies exceptions of torch, CUDA and the libraries on top of CUDA."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out. On a CPU torch raises a plain RuntimeError, so the text decides there."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def is_device_failure(error: Exception) -> bool:
    """Whether the CUDA context of this process is unusable, so that the process has to be replaced.

    Libraries on top of CUDA raise exception types of their own, so the type's name and the text decide.
    """
    text = f"{type(error).__name__}: {error}".lower()
    return any(sign in text for sign in ("cuda error", "cuda runtime error", "cudnn error", "cublas error", "acceleratorerror"))
