"""How much of a GPU's memory is left for batches."""

MAX_SHARE = 0.8
"""Share of the free memory that a batch may take. The rest is for the batch that is prepared meanwhile, and for fragmentation."""


class MemoryOfBatches:
    """The memory that batches take from now on, by the counters of torch's allocator. Measured on the current device."""

    def __init__(self) -> None:
        import torch

        torch.cuda.reset_peak_memory_stats()
        self._allocated_before = torch.cuda.memory_allocated()

    def fitting_batches(self) -> float:
        """How many batches like the largest one since then the free memory suffices for.

        A batch that did not fit counts like one that did: its attempt took all memory there was, so that the result is too low.
        """
        import torch

        allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
        free, total = torch.cuda.mem_get_info()
        allowed = torch.cuda.get_per_process_memory_fraction() * total - reserved
        # What torch has reserved and not allocated is free for the next batch.
        available = min(free, allowed) + reserved - allocated
        return MAX_SHARE * available / max(1, torch.cuda.max_memory_allocated() - self._allocated_before)
