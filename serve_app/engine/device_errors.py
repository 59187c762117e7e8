"""What an exception of torch or CUDA says about the device."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out. torch has an exception type for this on GPUs only."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def is_device_failure(error: Exception) -> bool:
    """Whether the GPU is lost to this process. Libraries on top of CUDA raise types of their own, so the text decides."""
    text = f"{type(error).__name__}: {error}".lower()
    return any(sign in text for sign in ("cuda error", "cuda runtime error", "cudnn error", "cublas error", "acceleratorerror"))
