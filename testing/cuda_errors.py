"""Errors of a GPU, for tests on machines without one."""


class NeMoCUDAPythonException(Exception):
    """Named like the exception that NeMo raises for errors of the CUDA runtime, the driver and NVRTC."""
