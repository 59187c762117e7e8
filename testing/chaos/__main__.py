"""Breaks a cluster of three nodes under load, one thing after the other, and prints what its clients saw of it.

    python -m testing.chaos [--files 10] [--streams 20] [--minutes 4] [--faults WORDS ...] [--replicas-per-node 2] [--json PATH]

The nodes are Ray's, on this machine; the models are simulated, about 50 times as fast as speech. While each fault happens, long
files are sent and live streams speak at the pace of speech. `--faults` takes those whose names have one of the words.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from benchmarks.report import table
from testing.chaos.cluster import MODEL, ChaosCluster
from testing.chaos.faults import FAULTS, Fault
from testing.checked_load import FRAME_S, CheckedLoad, Client

BEFORE_S = 3.0
"""Time that the load has before the fault, seconds."""


NOTICED_S = 6.0
"""By then Serve has noticed that something is lost, or it takes it until a health check fails, seconds."""


@dataclass(frozen=True, slots=True)
class Row:
    """What became of the clients during one fault."""

    fault: str
    skipped: str
    files: int = 0
    files_done: int = 0
    streams: int = 0
    streams_done: int = 0
    saw: tuple[str, ...] = ()
    """Failures that clients of the load met, with their number, and what else was seen."""
    tried_again: int = 0
    words: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: tuple[str, ...] = ()
    """Which words those are."""
    retried_windows: int = 0
    file_pause_s: float = 0.0
    """The longest time in which a file made no progress, seconds."""
    stream_pause_s: float = 0.0
    recovered_s: float = 0.0
    """From the fault until everything that was lost has been replaced, seconds."""
    rate_before: float = 0.0
    """Seconds of audio of files that were transcribed per second, before the fault."""
    rate_after: float = 0.0
    """The same once the cluster has recovered; 0 where no file was left."""


def try_fault(cluster: ChaosCluster, fault: Fault, files: int, file_s: float, streams: int) -> Row:
    if reason := fault.unless(cluster):
        return Row(fault.name, reason)
    retried = _lost_windows(cluster)
    urls = [cluster.urls[entry] for entry in fault.entries]
    with CheckedLoad(urls, MODEL, files, file_s, streams, retries=not fault.removes) as load:
        load.wait_until_begun()
        began_s = time.monotonic()
        time.sleep(BEFORE_S)
        fault_s = time.monotonic()
        seen = fault.run(cluster)
        if fault.removes:
            return _removed(cluster, fault, load)
        recovered_s = _watch(cluster, fault, load, fault_s)
        positions_s = {id(client): client.position_s for client in load.streams}
        load.wait_until(lambda: all(client.position_s > positions_s[id(client)] or client.is_done for client in load.streams))
    ends_s = [client.moments[-1][0] for client in load.files if client.moments]
    saw = Counter(f"{client.kind}: {what}" for client in load.clients for what in client.saw)
    return Row(
        fault.name,
        "",
        files=files,
        files_done=sum(bool(client.received) for client in load.files),
        streams=streams,
        streams_done=sum(bool(client.expected) for client in load.streams),
        saw=(*(f"{count} x {what}" for what, count in saw.items()), *([seen] if seen else [])),
        tried_again=sum(len(client.saw) for client in load.clients),
        words=sum(client.expected.total() for client in load.clients),
        lost=sum(client.lost for client in load.clients),
        doubled=sum(client.doubled for client in load.clients),
        wrong=tuple(wrong for client in load.clients for wrong in _wrong_words(client)),
        retried_windows=_lost_windows(cluster) - retried,
        file_pause_s=max((client.longest_pause_s(fault_s) for client in load.files), default=0.0),
        stream_pause_s=max((client.longest_pause_s(fault_s) for client in load.streams), default=0.0),
        recovered_s=recovered_s - fault_s,
        rate_before=_rate(load.files, began_s, fault_s),
        rate_after=_rate(load.files, recovered_s, min(ends_s, default=0.0)),
    )


def _removed(cluster: ChaosCluster, fault: Fault, load: CheckedLoad) -> Row:
    removed_s = time.monotonic()
    load.wait_until_done()
    answered_s = max(at_s for client in load.clients for at_s in client.failed_at_s) - removed_s
    saw = Counter(f"{client.kind}: {what}" for client in load.clients for what in client.saw)
    cluster.deploy()
    cluster.wait_until_whole()
    counts = tuple(f"{count} x {what}" for what, count in saw.items())
    return Row(fault.name, "", len(load.files), 0, len(load.streams), 0, (*counts, f"the last one after {answered_s:.1f} s"))


def _watch(cluster: ChaosCluster, fault: Fault, load: CheckedLoad, fault_s: float) -> float:
    """When the cluster had recovered, of the monotonic clock. Waits for that, and for the files."""
    recovered_s = fault_s
    if fault.replaces:
        load.wait_until(lambda: all(client.is_done for client in load.files))
        load.finish()
        load.wait_until_done()
    # What is lost is noticed after a while only.
    while time.monotonic() < fault_s + NOTICED_S or not all(client.is_done for client in load.files):
        if not cluster.is_whole():
            cluster.wait_until_whole()
            recovered_s = time.monotonic()
        time.sleep(0.2)
    return recovered_s


def _wrong_words(client: Client) -> list[str]:
    changes = [("lost", client.expected - client.received), ("doubled", client.received - client.expected)]
    told = f"of a {client.kind} of {max((frame for _, frame in client.expected), default=0) * FRAME_S:.2f} s"
    return [f"{what} {told}: {word} at {frame * FRAME_S:.2f} s" for what, words in changes for word, frame in words]


def _lost_windows(cluster: ChaosCluster) -> int:
    return cluster.log.count(f"of {MODEL} was lost with its replica")


def _rate(files: Sequence[Client], from_s: float, to_s: float) -> float:
    """Seconds of audio per second that the files gained in that time; 0 if it is none."""
    if to_s - from_s < 1:
        return 0.0
    gained = sum(
        after - before for file in files for (_, before), (at_s, after) in pairwise(file.moments) if from_s < at_s <= to_s
    )
    return gained / (to_s - from_s)


def rows(options: argparse.Namespace) -> Iterator[Row]:
    chosen = [fault for fault in FAULTS if not options.faults or any(word in fault.name for word in options.faults)]
    with ChaosCluster(replicas_per_node=options.replicas_per_node) as cluster:
        for fault in chosen:
            row = try_fault(cluster, fault, options.files, 60 * options.minutes, options.streams)
            yield row


HEAD = (
    *("fault", "files done", "streams done", "words", "lost", "doubled", "clients saw", "windows retried"),
    *("longest pause of a file, s", "of a stream, s", "recovered after, s", "x real time before", "after"),
)


def cells(row: Row) -> list[str]:
    """Of the table that HEAD heads."""
    if row.skipped:
        return [row.fault, f"not tried: {row.skipped}", *[""] * (len(HEAD) - 2)]
    return [
        row.fault,
        f"{row.files_done} of {row.files}",
        f"{row.streams_done} of {row.streams}",
        *(f"{number:,}" for number in (row.words, row.lost, row.doubled)),
        "; ".join(row.saw) or "nothing",
        str(row.retried_windows),
        *(f"{seconds:.1f}" for seconds in (row.file_pause_s, row.stream_pause_s, row.recovered_s)),
        f"{row.rate_before:.0f}",
        f"{row.rate_after:.0f}" if row.rate_after else "-",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10)
    parser.add_argument("--streams", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=4.0, help="length of a file")
    parser.add_argument("--replicas-per-node", type=int, default=2)
    parser.add_argument("--faults", nargs="+", default=[], help="words of their names; all by default")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    options = parser.parse_args()
    found = list[Row]()
    try:
        for row in rows(options):
            found.append(row)
            print(f"{row.fault}: {row.skipped or f'{row.lost} words lost, {row.doubled} doubled'}", flush=True)
            if options.json:
                options.json.write_text(json.dumps([asdict(row) for row in found], indent=1))
    finally:
        # Of an interrupted run too.
        load = f"{options.files} files of {options.minutes:g} min and {options.streams} live streams for each fault"
        print(f"\n{load}\n\n{table(HEAD, [cells(row) for row in found])}", flush=True)


if __name__ == "__main__":
    main()
