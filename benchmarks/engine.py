"""The bare engine by batch and length, stage by stage, beside the same engine with other fast paths and NeMo's `transcribe()`.

    python -m benchmarks.engine [--shape bundled] [--batches 1x10 4x10 1x30] [--fast-paths off auto] [--json PATH]

All engines live in one process, on the same windows and in the same precision, and take turns in every round. Figures are medians
of the rounds; ratios are of medians. The last column is the physical limit, as a share of the time in the encoder: what the
products in it would take at the rate of the device's fastest one (`matrix_limit.py`). The shapes `110m` and `0.6b` have random
weights: a bias makes them recognise nothing, so that their decoding takes what it takes in silence.
"""

import argparse
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, get_args

import numpy as np

from benchmarks import matrix_limit
from benchmarks.report import add_json_option, finish, machine, table
from benchmarks.shapes import SHAPES, model_file
from benchmarks.speech import spoken_digits
from serve_app.engine.parakeet import ParakeetEngine
from serve_app.settings import FastPath, WantedFastPaths
from serve_app.window import SAMPLE_RATE, Samples
from testing.digit_strings import load_bank
from testing.paths import DIGITS

STAGES = ("features", "encoder", "decode")
NEMO = "NeMo transcribe()"
WARM_UP_ROUNDS = 1
LONGEST_STRING_S = 15.0


@dataclass(frozen=True, slots=True)
class Batch:
    windows: int
    seconds: float

    @classmethod
    def parse(cls, text: str) -> "Batch":
        """From `4x10`: four windows of 10 s."""
        windows, seconds = text.split("x")
        return cls(int(windows), float(seconds))

    def __str__(self) -> str:
        return f"{self.windows} x {self.seconds:g} s"


@dataclass(slots=True)
class Times:
    """What one engine took for one batch, seconds, an item per round."""

    engine: str
    batch: Batch
    total_s: list[float] = field(default_factory=list)
    stages_s: dict[str, list[float]] = field(default_factory=lambda: {stage: [] for stage in STAGES})
    """Empty for NeMo."""

    @property
    def rtfx(self) -> float:
        """Seconds of audio per second."""
        return self.batch.windows * self.batch.seconds / median(self.total_s)


class StageClock:
    """Measures the stages of an engine's inference: calls of its preprocessor, its encoder and its decoder."""

    def __init__(self, engine: ParakeetEngine) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._wrap("features", engine._model.preprocessor, "forward")
        self._wrap("encoder", engine._model.encoder, "forward")
        self._wrap("decode", engine._decoder, "decode")

    def _wrap(self, stage: str, owner: Any, name: str) -> None:
        call = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = now_s()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds[stage] += now_s() - started

        setattr(owner, name, timed)


def now_s() -> float:
    """The time when all work given to a GPU so far is done."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def nemo(path: Path, engine: ParakeetEngine) -> Callable[[Sequence[Samples]], Any]:
    """NeMo's own `transcribe()`, without timestamps, in the precision and on the device of an engine."""
    import torch
    from nemo.collections.asr.models import ASRModel
    from nemo.core.classes.common import typecheck

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[engine.info.precision]
    model = ASRModel.restore_from(str(path), map_location=engine.info.device).eval().to(dtype)

    def transcribe(windows: Sequence[Samples]) -> Any:
        audio = [window.astype(np.float32) / 32768 for window in windows]
        # The engine has switched them off.
        typecheck.set_typecheck_enabled(True)
        try:
            return model.transcribe(audio, batch_size=len(audio), verbose=False)
        finally:
            typecheck.set_typecheck_enabled(False)

    return transcribe


def measure(arguments: argparse.Namespace, path: Path) -> tuple[list[Times], dict[Batch, float], dict[str, str]]:
    """The times; by batch the encoder's limit, seconds, if an engine without fast paths takes part; and what was measured."""
    engines = {
        _name(wanted): ParakeetEngine.load(
            path,
            device=arguments.device,
            precision=arguments.precision,
            fast_paths=wanted,
            cpu_threads=arguments.threads,
        )
        for wanted in arguments.fast_paths
    }
    clocks = {name: StageClock(engine) for name, engine in engines.items()}
    sides: dict[str, Callable[[Sequence[Samples]], Any]] = {name: engine.transcribe for name, engine in engines.items()}
    any_engine = next(iter(engines.values()))
    if arguments.nemo:
        sides[NEMO] = nemo(path, any_engine)
    bank = load_bank(DIGITS)
    results: list[Times] = []
    limits_s: dict[Batch, float] = {}
    rate = matrix_limit.operations_per_s(any_engine.info.device, any_engine._dtype) if "off" in engines else 0.0
    for batch in arguments.batches:
        # Cut from longer ones, which do not end with silence.
        samples = round(batch.seconds * SAMPLE_RATE)
        windows = [spoken_digits(bank, batch.seconds + LONGEST_STRING_S, seed)[:samples] for seed in range(batch.windows)]
        if rate:
            limits_s[batch] = matrix_limit.operations(engines["off"], windows) / rate
        times = {name: Times(name, batch) for name in sides}
        for number in range(WARM_UP_ROUNDS + arguments.rounds):
            for name, transcribe in sides.items():
                clock = clocks.get(name)
                if clock is not None:
                    clock.seconds = dict.fromkeys(STAGES, 0.0)
                started = now_s()
                transcribe(windows)
                total_s = now_s() - started
                if number < WARM_UP_ROUNDS:
                    continue
                times[name].total_s.append(total_s)
                for stage, seconds in clock.seconds.items() if clock else ():
                    times[name].stages_s[stage].append(seconds)
        results += times.values()
    left_out = {reason for engine in engines.values() for reason in engine.info.fast_paths.left_out}
    return (
        results,
        limits_s,
        {
            "shape": arguments.shape,
            "device": any_engine.info.device,
            "precision": any_engine.info.precision,
            "threads": str(arguments.threads or "default"),
            "left out": "; ".join(sorted(left_out)) or "nothing",
        },
    )


def rows(results: Sequence[Times], limits_s: Mapping[Batch, float]) -> list[list[str]]:
    """A row for each batch and engine. Ratios are to the first engine with the same batch; the limit is in proportion to its time
    in the encoder."""
    cells = []
    for times in results:
        first = next(other for other in results if other.batch == times.batch)
        total_s, first_s = median(times.total_s), median(first.total_s)
        if times.stages_s["encoder"]:
            stages_s = [median(times.stages_s[stage]) for stage in STAGES]
            limit_s = limits_s.get(times.batch)
            limit_share = f"{limit_s / stages_s[1]:.2f}" if limit_s else ""
            encoder_ratio = f"{stages_s[1] / median(first.stages_s['encoder']):.2f}"
            stages = [f"{1000 * seconds:.1f}" for seconds in (*stages_s, total_s - sum(stages_s))]
        else:
            stages, encoder_ratio, limit_share = [""] * (len(STAGES) + 1), "", ""
        spread = f"{1000 * min(times.total_s):.1f} to {1000 * max(times.total_s):.1f}"
        total = [f"{1000 * total_s:.1f}", spread, f"{times.rtfx:,.0f}", encoder_ratio, f"{total_s / first_s:.2f}", limit_share]
        cells.append([str(times.batch), times.engine, *stages, *total])
    return cells


HEAD = [
    *("batch", "fast paths", *(f"{stage}, ms" for stage in STAGES), "rest, ms", "total, ms", "fastest to slowest round"),
    *("x real time", "encoder, ratio", "total, ratio", "encoder, limit"),
]


def _wanted(text: str) -> WantedFastPaths:
    if text in ("auto", "off"):
        return text  # type: ignore[return-value]
    names = tuple(text.split(","))
    if not set(names) <= set(get_args(FastPath)):
        raise argparse.ArgumentTypeError(f"choose auto, off, or some of {', '.join(get_args(FastPath))} joined by commas")
    return names  # type: ignore[return-value]


def _name(wanted: WantedFastPaths) -> str:
    return wanted if isinstance(wanted, str) else ", ".join(wanted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="bundled")
    parser.add_argument("--batches", nargs="+", type=Batch.parse, default=["1x2", "1x10", "1x30", "4x10", "4x30"], metavar="NxS")
    parser.add_argument("--fast-paths", nargs="+", type=_wanted, default=["off", "auto"], help="of each engine; names by commas")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16", "fp16"], default="auto")
    parser.add_argument("--threads", type=int, default=0, help="of a CPU; 0: as a replica would have")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--no-nemo", dest="nemo", action="store_false", help="without NeMo's transcribe()")
    add_json_option(parser)
    arguments = parser.parse_args()
    arguments.batches = [b if isinstance(b, Batch) else Batch.parse(b) for b in arguments.batches]
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with model_file(arguments.shape) as path:
        results, limits_s, description = measure(arguments, path)
    finish(
        arguments.json,
        machine(**description),
        f"medians of {arguments.rounds} rounds in which all engines take turns",
        [table(HEAD, rows(results, limits_s))],
        results=[asdict(times) for times in results],
    )


if __name__ == "__main__":
    main()
