"""The duration that a file states, and whether all of it was decoded."""

import av

IN_HEADER = frozenset({"aiff", "asf", "au", "avi", "caf", "flac", "flv", "matroska", "mov", "tta", "w64", "wv"})
"""Containers whose header states the duration, by FFmpeg's names. WAV is not among them: a program that writes it to a pipe
does not know the length of the file, and writes a placeholder."""

IN_TIME_STAMPS = frozenset({"mpeg", "mpegts", "ogg"})
"""Containers whose duration FFmpeg reads from their last time stamps, so it is right and says nothing about missing audio."""

MIN_SHORTFALL_S = 1.0
"""Minimum difference between the stated and the decoded duration that means missing audio, seconds. Codec delays are shorter."""

MIN_SHORTFALL = 0.01
"""The same as a fraction of the stated duration: the clock of a recorder may drift."""


class Duration:
    """The duration of one audio stream. Both properties are None where the file does not state it."""

    def __init__(self, container: av.container.InputContainer, stream: av.AudioStream) -> None:
        name = container.format.name.split(",")[0]
        of_file = container.duration / av.time_base if container.duration else None
        of_stream = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else _tagged_s(stream)
        if name == "matroska" and container.start_time:
            # It states the time of the end. What comes before the first time stamp of the file is not played.
            start_s = container.start_time / av.time_base
            of_file, of_stream = (None if end_s is None else max(0.0, end_s - start_s) for end_s in (of_file, of_stream))
        # FFmpeg guesses the duration of an MP3 file without a header, and only a header states the delay of the encoder.
        has_header = name in IN_HEADER or (name == "mp3" and bool(stream.start_time))
        is_alone = len(container.streams) == 1
        self._header_s = (of_stream or (of_file if is_alone else None)) if has_header else None
        self.announced_s = of_file if has_header or name in (*IN_TIME_STAMPS, "wav") else None
        """Duration that the file states, seconds."""

    def is_short(self, decoded_s: float) -> bool:
        """Whether `decoded_s` seconds are well short of the duration in the header."""
        return self._header_s is not None and self._header_s - decoded_s > max(MIN_SHORTFALL_S, MIN_SHORTFALL * self._header_s)


def _tagged_s(stream: av.AudioStream) -> float | None:
    """The tag DURATION of a Matroska stream (HH:MM:SS.fraction), seconds."""
    try:
        hours, minutes, seconds = stream.metadata.get("DURATION", "").split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    except ValueError:
        return None
