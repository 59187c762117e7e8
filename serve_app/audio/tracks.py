"""Which audio stream of a file is decoded."""

import av
from av.stream import Discard, Disposition

from serve_app.errors import AudioError


def select_track(container: av.container.InputContainer, track: int | None) -> av.AudioStream:
    """The audio stream number `track`, from 0; None: the one that players take. The demuxer discards all other streams.

    Players take the stream that is marked as default, else the first. Streams without a decoder are skipped.

    Raises AudioError if there is no such stream, or no decoder for it.
    """
    streams = container.streams.audio
    if not streams:
        raise AudioError("The file has no audio: it holds no audio stream.")
    if track is None:
        candidates = sorted(streams, key=lambda stream: not stream.disposition & Disposition.default)
    elif 0 <= track < len(streams):
        candidates = [streams[track]]
    else:
        known = "one audio track, number 0" if len(streams) == 1 else f"audio tracks 0 to {len(streams) - 1}"
        raise AudioError(f"The file has no audio track {track}; it has {known}.", param="track")
    # Despite its type, codec_context is None if FFmpeg has no decoder.
    chosen = next((stream for stream in candidates if stream.codec_context is not None), None)
    if chosen is None:
        raise AudioError("The audio of the file is in a codec that cannot be decoded.")
    for stream in container.streams:
        if stream is not chosen:
            stream.discard = Discard.all
    return chosen
