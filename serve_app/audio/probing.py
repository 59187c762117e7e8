"""Recognise media files by their first bytes, to distinguish them from raw samples."""

import numpy as np

MAGIC = (
    b"fLaC",
    b"OggS",
    b"ID3",
    b"\x1aE\xdf\xa3",  # Matroska, WebM
    b"#!AMR",
    b"caff",
    b"FORM",
    b".snd",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",  # ASF, WMA
    b"wvpk",
    b"TTA1",
    b"MAC ",  # Monkey's Audio
    b"Creative Voice File\x1a",
    b"riff\x2e\x91\xcf\x11",  # W64
    b"MThd",
    b"FLV\x01",
    b"\x00\x00\x01\xba",  # MPEG program stream
)
"""The bytes with which media files begin (magic numbers)."""

MP4_ATOMS = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
"""Types of the first atom of MP4 and QuickTime files, at byte 4. Old QuickTime files have no `ftyp`."""

TRANSPORT_PACKETS = ((188, 0), (192, 4))
"""Length of a packet of an MPEG transport stream and place of its sync byte, bytes: plain, and with a time code (M2TS)."""

TRANSPORT_SYNC_BYTES = 5
"""Number of sync bytes by which a transport stream is recognised."""

MAX_FRAME_HEADER_BYTES = 7
"""Maximum length of an MPEG or ADTS frame header, bytes."""

SNIFFED_BYTES = 4096
"""Number of bytes from which it is decided whether a stream is a media file."""

PROBED_FORMATS = (
    *("aac", "ac3", "aiff", "amr", "amrnb", "amrwb", "asf", "au", "avi", "caf", "dsf", "dts", "dtshd", "eac3", "flac", "flv"),
    *("gsm", "latm", "loas", "matroska", "mlp", "mov", "mpc", "mpc8", "mpeg", "mpegts", "mxf", "nut", "ogg", "oma"),
    *("qcp", "rm", "sbc", "shn", "sox", "tak", "truehd", "tta", "voc", "w64", "wav", "wv"),
)
"""Containers in which FFmpeg may recognise a media file by its first bytes, by FFmpeg's names.

MP3 is not among them, because FFmpeg takes one in a thousand raw streams for it.
"""

LOUD_LEVEL = 0.1
"""RMS level above which bytes are checked for being samples, as a fraction of full scale. Quiet samples are always accepted."""

MIN_SAMPLE_CORRELATION = 0.3
"""Minimum correlation of neighbouring samples of loud audio. In compressed and encrypted data it is near 0."""

MPEG_BITRATES = (
    (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),  # version 1, layer 1
    (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),  # version 2, layer 1
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
)
"""Bit rates of MPEG audio, kbit/s, by version and layer, then by the index in a frame header."""

MPEG_RATES_HZ = (44_100, 48_000, 32_000)
"""Sample rates of MPEG audio version 1, Hz, by the index in a frame header."""


def is_media(head: bytes) -> bool | None:
    """Whether `head`, the first bytes of a stream, begins a media file, by magic numbers and frame headers alone.

    None if more bytes are needed, at most SNIFFED_BYTES. Where it is False, FFmpeg may still recognise one
    of PROBED_FORMATS.
    """
    if head.startswith((*MAGIC, b"RIFF", b"RF64")) or needs_whole_file(head) or _is_transport_stream(head):
        return True
    if head[:1] == b"\xff" and _is_frame_sequence(head):
        return True
    return False if len(head) >= SNIFFED_BYTES else None


def may_be_samples(head: bytes) -> bool:
    """Whether `head` may be 16-bit samples. False for loud data with an offset, such as text, or without any correlation."""
    samples = np.frombuffer(head[: len(head) // 2 * 2], "<i2").astype(np.float32) / 32768
    if len(samples) < 2 or np.sqrt(np.square(samples).mean()) < LOUD_LEVEL:
        return True
    deviations = samples - samples.mean()
    power = np.square(deviations).mean()
    correlation = (deviations[1:] * deviations[:-1]).mean() / (power + 1e-9)
    return bool(power > np.square(samples.mean()) and correlation >= MIN_SAMPLE_CORRELATION)


def needs_whole_file(head: bytes) -> bool:
    """Whether the file can be decoded only once it is complete: an MP4 file may have its index after the audio."""
    return head[4:8] in MP4_ATOMS


def _is_transport_stream(head: bytes) -> bool:
    return any(head[place::length][:TRANSPORT_SYNC_BYTES] == b"G" * TRANSPORT_SYNC_BYTES for length, place in TRANSPORT_PACKETS)


def _is_frame_sequence(head: bytes) -> bool | None:
    """Whether two MPEG or ADTS frames follow each other, as MP3 and ADTS have no file header. None if more bytes are needed."""
    if len(head) < MAX_FRAME_HEADER_BYTES:
        return None
    length = _mpeg_frame_bytes(head) or _adts_frame_bytes(head)
    following = head[length : length + 2]
    if length and len(following) < 2:
        return None
    return length > 0 and following[0] == 0xFF and (following[1] ^ head[1]) & 0xFE == 0


def _mpeg_frame_bytes(head: bytes) -> int:
    """Length of the MPEG audio frame at the start, bytes (ISO 11172-3, 2.4.3.1). 0 if there is no frame."""
    header = int.from_bytes(head[:4], "big")
    version, layer = header >> 19 & 3, 4 - (header >> 17 & 3)
    bitrate_index, rate_index, padding = header >> 12 & 15, header >> 10 & 3, header >> 9 & 1
    if header >> 21 != 0x7FF or version == 1 or layer == 4 or bitrate_index in (0, 15) or rate_index == 3:
        return 0
    is_first = version == 3
    table = MPEG_BITRATES[layer - 1] if is_first else MPEG_BITRATES[3 if layer == 1 else 4]
    rate_hz = MPEG_RATES_HZ[rate_index] // (1 if is_first else 2 if version == 2 else 4)
    bits = 1000 * table[bitrate_index]
    if layer == 1:
        return (12 * bits // rate_hz + padding) * 4
    return (72 if layer == 3 and not is_first else 144) * bits // rate_hz + padding


def _adts_frame_bytes(head: bytes) -> int:
    """Length of the ADTS frame at the start, bytes (ISO 13818-7, 6.2). 0 if there is no frame."""
    if head[1] & 0xF6 != 0xF0:
        return 0
    return (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
