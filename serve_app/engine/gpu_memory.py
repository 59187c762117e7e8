"""How much of a GPU's memory is left for batches."""

MAX_SHARE = 0.8
"""Share of the free memory that a batch may take. The rest is for the batch that is prepared meanwhile, and for fragmentation."""


def fitting_batches() -> float:
    """How many batches like the largest one so far the free memory suffices for, by the peak of what torch has allocated."""
    import torch

    allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    free, total = torch.cuda.mem_get_info()
    allowed = torch.cuda.get_per_process_memory_fraction() * total - reserved
    # What torch has reserved and not allocated is free for the next batch.
    available = min(free, allowed) + reserved - allocated
    return MAX_SHARE * available / max(1, torch.cuda.max_memory_allocated() - allocated)
