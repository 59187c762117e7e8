"""How the audio of a window travels to a replica: in pieces that Ray sends along with the call.

An argument above 100 kB would go through Ray's object store, which costs each window requests to the raylet on either side.
"""

import numpy as np

from serve_app.window import Samples

MAX_BYTES = 8 << 20
"""Maximum audio that is sent in pieces, bytes (260 s). Ray passes on at most 10 MB with a call."""

MAX_PIECE_BYTES = 96_000
"""Maximum size of a piece, bytes: below Ray's `max_direct_call_object_size`, 100 KiB with what Ray adds to it."""


def pieces(samples: Samples) -> list[bytes]:
    """The bytes of int16 [samples], divided unless they are too many."""
    data = samples.tobytes()
    if len(data) > MAX_BYTES:
        return [data]
    return [data[start : start + MAX_PIECE_BYTES] for start in range(0, len(data), MAX_PIECE_BYTES)]


def joined(pieces: tuple[bytes, ...]) -> Samples:
    """The samples of all pieces, int16 [samples], read-only."""
    return np.frombuffer(b"".join(pieces), np.int16)
