"""Speech-to-text server for NVIDIA Parakeet models on Ray Serve."""

__version__ = "0.1.0"
