"""Subtitle files and tables, read back with independent libraries."""

import csv
import html
import io
from collections.abc import Callable
from datetime import timedelta

import pytest
import srt
import webvtt
from hypothesis import given
from hypothesis import strategies as st

from serve_app.output.cues import Cue, CueRules, shape
from serve_app.output.subtitles import to_csv, to_srt, to_tsv, to_vtt
from serve_app.transcript import Segment, Transcript
from tests.output.test_cues import assert_cues_hold, speech


def read_srt(text: str) -> list[Cue]:
    read = list(srt.parse(text, ignore_errors=False))
    assert [subtitle.index for subtitle in read] == list(range(1, len(read) + 1))
    return [
        Cue(entry.start / timedelta(seconds=1), entry.end / timedelta(seconds=1), tuple(entry.content.split("\n")))
        for entry in read
    ]


def read_vtt(text: str) -> list[Cue]:
    captions = webvtt.from_string(text).captions
    return [
        Cue(
            caption.start_time.in_milliseconds() / 1000,
            caption.end_time.in_milliseconds() / 1000,
            tuple(html.unescape(caption.raw_text).split("\n")),
        )
        for caption in captions
    ]


READERS = pytest.mark.parametrize(("write", "read"), [(to_srt, read_srt), (to_vtt, read_vtt)], ids=["srt", "vtt"])
Write = Callable[[list[Cue]], str]
Read = Callable[[str], list[Cue]]


@READERS
def test_ten_minutes_lose_no_word(write: Write, read: Read) -> None:
    segments, rules = speech(600), CueRules()
    cues = read(write(shape(segments, rules)))
    assert [word for cue in cues for line in cue.lines for word in line.split()] == [
        word.text for segment in segments for word in segment.words
    ]
    assert_cues_hold(cues, rules)
    assert all(len(line) <= rules.max_line_chars for cue in cues for line in cue.lines)


LITERAL = [
    "{an aside}",
    r"{\an8}top",
    r"{\p1}m 0 0",
    r"\N and \n and \h",
    r"C:\new\home",
    "Q&A",
    "a < b > c",
    "<i>not italic</i>",
    "&amp; as such",
    "x --> y",
    "NOTE well",
    "42",
    '"quoted"',
    "日本語、です。",
]


@READERS
@pytest.mark.parametrize("text", LITERAL)
def test_special_characters_are_unchanged(write: Write, read: Read, text: str) -> None:
    cues = [Cue(0.0, 1.0, (text, "second line")), Cue(1.0, 2.0, ("first line", text))]
    assert read(write(cues)) == cues


LINES = st.text(st.characters(blacklist_categories=("C", "Z")) | st.sampled_from("{}\\<>&N n"), min_size=1).map(
    lambda text: "a" + " ".join(text.split())
)


@READERS
@given(lines=st.lists(LINES, min_size=1, max_size=3))
def test_any_text_is_unchanged(write: Write, read: Read, lines: list[str]) -> None:
    cues = [Cue(0.0, 1.0, tuple(lines)), Cue(1.5, 2.0, ("b",))]
    assert read(write(cues)) == cues


def test_the_layout_of_srt() -> None:
    cues = [Cue(0.0, 1.5, ("One", "two")), Cue(3661.007, 3662.0, ("three",))]
    assert to_srt(cues) == ("1\n00:00:00,000 --> 00:00:01,500\nOne\ntwo\n\n2\n01:01:01,007 --> 01:01:02,000\nthree\n\n")


def test_vtt_is_escaped_and_its_hours_are_padded() -> None:
    text = to_vtt([Cue(0.5, 1.5, ("a < b --> c & d",))])
    assert text == "WEBVTT\n\n1\n00:00:00.500 --> 00:00:01.500\na &lt; b --&gt; c &amp; d\n\n"


@READERS
@pytest.mark.parametrize("end_s", [59.9994, 59.9996, 59.9999999, 3599.9996])
def test_rounding_carries_to_the_next_minute_without_overlap(write: Write, read: Read, end_s: float) -> None:
    text = write([Cue(end_s - 1, end_s, ("one",)), Cue(end_s, end_s + 1, ("two",))])
    assert ":60" not in text
    first, second = read(text)
    assert first.end_s == second.start_s == pytest.approx(end_s, abs=0.0005)


@READERS
def test_line_breaks_inside_a_line_become_spaces(write: Write, read: Read) -> None:
    (cue,) = read(write([Cue(0.0, 1.0, ("one\n\ntwo\r\nthree\u2028four",))]))
    assert cue.lines == ("one two three four",)


@READERS
def test_a_null_character_is_replaced(write: Write, read: Read) -> None:
    (cue,) = read(write([Cue(0.0, 1.0, ("a\0b",))]))
    assert cue.lines == ("a\N{REPLACEMENT CHARACTER}b",)


def test_no_cues() -> None:
    assert to_srt([]) == ""
    assert to_vtt([]).strip() == "WEBVTT"
    assert read_vtt(to_vtt([])) == []


def transcript(*said: tuple[str, float, float], duration_s: float = 100.0) -> Transcript:
    segments = tuple(Segment(i, text, start_s, end_s, (), ()) for i, (text, start_s, end_s) in enumerate(said))
    return Transcript(segments, duration_s=duration_s, model="digits", language="en")


def test_csv_has_the_columns_of_parakeet_asr_fastapi() -> None:
    text = to_csv(transcript(("Seven two.", 1.0, 1.94), ('Nine, "ten".', 59.9996, 61.0)))
    assert text == 'Start (s),End (s),Text\r\n1.000,1.940,Seven two.\r\n60.000,61.000,"Nine, ""ten""."\r\n'


def test_a_segment_is_one_line_of_csv() -> None:
    text = to_csv(transcript(("one\ntwo\r\nthree,\t'four' \"five\"", 0.0, 1.0)))
    assert text.count("\r\n") == 2
    assert "\n" not in text.replace("\r\n", "")
    (row,) = csv.DictReader(io.StringIO(text, newline=""))
    assert row == {"Start (s)": "0.000", "End (s)": "1.000", "Text": "one two three, 'four' \"five\""}


def test_tsv_has_the_format_of_whisper() -> None:
    text = to_tsv(transcript(("Seven two.", 1.0, 1.9404), ('Nine,\t"ten"\nmore.', 59.9996, 61.0)))
    assert text == 'start\tend\ttext\n1000\t1940\tSeven two.\n60000\t61000\tNine, "ten" more.\n'


@pytest.mark.parametrize("write", [to_csv, to_tsv])
def test_end_times_in_tables_are_limited_to_the_audio(write: Callable[[Transcript], str]) -> None:
    text = write(transcript(("Nine.", 1.0, 2.08), duration_s=2.0))
    assert ("2.000" in text) or ("2000" in text)


def test_tables_of_an_empty_transcript_have_only_the_header() -> None:
    assert to_csv(transcript()) == "Start (s),End (s),Text\r\n"
    assert to_tsv(transcript()) == "start\tend\ttext\n"
