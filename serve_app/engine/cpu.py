"""CPU inference: environment variables of OpenMP and oneDNN."""

CPU_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128"}
"""Environment variables that are set before torch is imported, unless they are set already.

By default OpenMP threads spin while they wait; with other busy processes on the machine, a step took 50 times as long. By default
oneDNN caches primitives for 1,024 shapes, which takes 150 MB when every window has another length.
"""
