"""Decoder processes: they decode files and cut them into windows, so that neither Python's interpreter lock nor a crash of FFmpeg
reaches the ingress.

In the ingress: `pool.py` distributes files to processes, `recording.py` is one file, `process.py` one process. In a process:
`worker.py` is the program, `job.py` one file, `time_slices.py` the order of the files, `sandbox.py` the limits of the process.
Between them: `messages.py` and `shared_memory.py`.
"""
