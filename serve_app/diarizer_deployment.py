"""The Serve deployment of a diarizer: `DiarizerReplica` holds one loaded copy and processes chunks of any recordings, in turn."""

import asyncio
import time
from dataclasses import replace
from typing import ClassVar

import numpy as np

from serve_app.cluster.calls import DeploymentHandle
from serve_app.cluster.status import ReplicaStatus
from serve_app.diarization.protocol import DiarizerEngine, DiarizerShape, Probabilities
from serve_app.diarization.simulated import SimulatedDiarizer
from serve_app.engine.model_files import find_model_file
from serve_app.errors import DiarizerChanged, EngineBroken, EngineOutOfMemory
from serve_app.model_source import bundled_diarizer_path
from serve_app.observe import catalogue
from serve_app.replica import Replica, device_of
from serve_app.settings import DiarizerSettings, LogFormat
from serve_app.window import SAMPLE_RATE, Samples

MAX_FAILED_STEPS = 5
"""Steps that may fail in a row before the process is replaced."""


class DiarizerReplica(Replica):
    """One copy of one diarizer. It keeps nothing of a recording: the state of a recording travels with its calls."""

    KIND: ClassVar = "diarizer"
    PARAM: ClassVar = "diarize"

    async def __init__(  # type: ignore[misc]  # Serve awaits constructors
        self, diarizer: DiarizerSettings, step_timeout_s: float, status_registry: DeploymentHandle, log_format: LogFormat
    ) -> None:
        """`step_timeout_s`: a step that takes longer, seconds, is hung."""
        self._diarizer = diarizer
        self._step_timeout_s = step_timeout_s
        self._engine: DiarizerEngine | None = None
        self._turn = asyncio.Lock()
        self._steps = self._failed_in_a_row = 0
        await self._begin(status_registry, log_format)

    @property
    def _name(self) -> str:
        return self._diarizer.name

    @property
    def _is_loaded(self) -> bool:
        return self._engine is not None

    async def shape(self) -> DiarizerShape:
        """How recordings are to be cut. Raises ModelUnavailable."""
        return (await self._loaded_engine()).shape

    async def step(
        self, samples: Samples, left_samples: int, right_samples: int, state: bytes | None
    ) -> tuple[Probabilities, bytes]:
        """See DiarizerEngine.step. Raises ModelUnavailable or EngineError."""
        engine = await self._loaded_engine()
        async with self._turn:
            began_s = time.monotonic()
            try:
                # A call by reference has samples that may not be written to.
                arguments = (np.array(samples), left_samples, right_samples, state)
                found = await self._guarded(self._step_timeout_s, self._engine_thread, engine.step, *arguments)
            except (EngineBroken, EngineOutOfMemory, DiarizerChanged):
                raise
            except Exception:
                self._failed_in_a_row += 1
                if self._failed_in_a_row >= MAX_FAILED_STEPS and self._broken is None:
                    self._exit(EngineBroken(f"{MAX_FAILED_STEPS} steps in a row failed."))
                raise
            finally:
                self._recorder.record(catalogue.DIARIZER_STEP_SECONDS, time.monotonic() - began_s, self._name)
            self._failed_in_a_row = 0
            self._steps += 1
            audio_s = (len(samples) - left_samples - right_samples) / SAMPLE_RATE
            self._recorder.record(catalogue.DIARIZER_AUDIO_SECONDS, audio_s, self._name)
            return found

    async def _loaded_engine(self) -> DiarizerEngine:
        await self._require_loaded()
        assert self._engine is not None
        return self._engine

    async def _open(self) -> ReplicaStatus:
        self._engine = await self._loop.run_in_executor(self._engine_thread, self._load_engine)
        info = self._engine.info
        return replace(
            self._status,
            device=info.device,
            precision=info.precision,
            fast_paths=info.fast_paths,
            fast_paths_left_out=info.fast_paths_left_out,
        )

    def _load_engine(self) -> DiarizerEngine:
        """Runs on the engine thread."""
        diarizer = self._diarizer
        if diarizer.source == "simulated":
            return SimulatedDiarizer(diarizer.simulation)
        if diarizer.source == "bundled":
            path = bundled_diarizer_path()
        else:
            path = find_model_file(diarizer.source, timeout_s=diarizer.load_timeout_s, on_progress=self._note_download)
        self._set_state("loading")
        # It imports torch and NeMo, which take seconds and which a simulated one does not need.
        from serve_app.diarization.sortformer import SortformerEngine

        device = device_of(diarizer.device)
        return SortformerEngine.load(
            path, device=device, precision=diarizer.precision, fast_paths=diarizer.fast_paths, chunk_s=diarizer.chunk_s
        )

    def _status_now(self) -> ReplicaStatus:
        return replace(self._status, batches=self._steps, windows=self._steps)
