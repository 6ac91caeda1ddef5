"""Real runs for the fault tests: the command line in a forked process, hooks that break it, what it left."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamcl.storage import array_files
from streamcl.storage.checkpoint import Checkpoints
from streamcl.storage.checkpoint_format import verify_checkpoint
from streamcl.storage.plain_state import state_hash

TINY = {
    "name": "vit_tiny_patch16_224",
    "weights": "none",
    "image_size": 32,
    "args": {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2},
}
LEARNERS: dict[str, dict[str, Any]] = {
    "ridge": {"name": "ridge", "blocks": [1, 2]},
    "deferred": {"name": "ridge", "blocks": [1, 2], "defer_solve": 24},
    "hybrid": {
        "name": "ridge_lora",
        "ridge": {"blocks": [1, 2]},
        "lora": {"first_block": 1, "warmup_samples": 40},
    },
    "latents": {
        "name": "ridge_lora",
        "ridge": {"blocks": [1, 2]},
        "lora": {"first_block": 1},
        "latents": {"budget": "64kB", "first_samples": 24},
    },
    "online_lora": {"name": "online_lora", "learning_rate": 0.01, "first_block": 1, "hard_buffer_size": 4},
    "latent_replay": {
        "name": "online_lora",
        "learning_rate": 0.01,
        "first_block": 1,
        "latents": {"budget": "24kB"},
    },
    "er": {"name": "er", "replay_size": 12, "first_block": 1},
    "der_pp": {"name": "der_pp", "replay_size": 12, "first_block": 1},
    "ewc_pp": {"name": "ewc_pp", "first_block": 1},
    "frozen_linear": {"name": "frozen_linear"},
    "slda": {"name": "slda", "blocks": [1, 2]},
    "keys": {"name": "keys", "blocks": [1, 2], "keys": 64},
}


@dataclass(frozen=True)
class Done:
    """How a process ended; `code` is None where it had to be killed because it did not."""

    code: int | None
    out: str
    err: str


class Process:
    """A started command line."""

    def __init__(self, pid: int, folder: Path, number: int) -> None:
        self.pid, self._folder, self._number = pid, folder, number

    def send(self, which: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, which)

    def wait(self, seconds: float = 300.0) -> Done:
        code = _ask({"wait": self.pid, "seconds": seconds})["code"]
        if code is None:
            self.send(signal.SIGKILL)
            _ask({"wait": self.pid, "seconds": 10})
        out, err = (
            (self._folder / f".{kind}-{self._number}").read_text(errors="replace") for kind in ("out", "err")
        )
        return Done(code, out, err)


_SERVER: list[subprocess.Popen[str]] = []
_COUNT = [0]


def start(*arguments: object, folder: Path, hooks: tuple[Any, ...] = (), env: Any = None) -> Process:
    """Begin `streamcl ARGUMENTS` in `folder`. hooks: ("module:function", {arguments}) called before it."""
    _COUNT[0] += 1
    request = {
        "start": [str(argument) for argument in arguments],
        "cwd": str(folder),
        "out": str(folder / f".out-{_COUNT[0]}"),
        "err": str(folder / f".err-{_COUNT[0]}"),
        "env": env or {},
        "hooks": [list(hook) for hook in hooks],
    }
    return Process(_ask(request)["pid"], folder, _COUNT[0])


def streamcl(*arguments: object, folder: Path, seconds: float = 300.0, **options: Any) -> Done:
    """Run `streamcl ARGUMENTS` to its end."""
    return start(*arguments, folder=folder, **options).wait(seconds)


def until(true: Callable[[], bool], *, process: Process, seconds: float = 300.0) -> None:
    """Wait until a condition holds; a run that has ended meanwhile is an error."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it does not come"
        os.kill(process.pid, 0)
        time.sleep(0.05)


def stop(process: Process) -> Done:
    """Ask a run to stop as soon as it can be asked: before it handles SIGTERM, that would just kill it."""
    until(lambda: _handles(process.pid, signal.SIGTERM), process=process)
    process.send(signal.SIGTERM)
    return process.wait()


def _handles(pid: int, which: int) -> bool:
    """Return whether a process has a handler for a signal; True where the system does not say."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return True
    caught = next(line for line in status.read_text().splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (which - 1) & 1)


def _ask(request: dict[str, Any]) -> dict[str, Any]:
    if not _SERVER:
        command = [sys.executable, str(Path(__file__).with_name("warm_server.py"))]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "100"}
        server = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        _SERVER.append(server)
        atexit.register(_end, server)
    server = _SERVER[0]
    assert server.stdin
    assert server.stdout
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    answer: dict[str, Any] = json.loads(server.stdout.readline())
    return answer


def _end(server: subprocess.Popen[str]) -> None:
    server.kill()
    server.wait()
    for pipe in (server.stdin, server.stdout):
        if pipe is not None:
            pipe.close()


def write_config(
    folder: Path, name: str = "stream.yaml", learner: str = "online_lora", **changes: Any
) -> Path:
    """A YAML file (JSON is YAML) of a short run on a tiny ViT, over `fault_sources:pictures`."""
    config = {
        "source": {"class": "fault_sources:Pictures", "args": {"records": 96}},
        "batch": 8,
        "backbone": TINY,
        "learner": LEARNERS[learner],
        "shift": {"class": "fault_sources:EveryFew", "args": {}},
        "checkpoint": {"every_samples": 16},
        "precision": "32-true",
        "device": "cpu",
        "threads": 1,
        "report": {"samples": 2},
    } | changes
    path = folder / name
    path.write_text(json.dumps(config))
    return path


@dataclass(frozen=True)
class Left:
    """What a run has left, but for what only the clock or a file's length decides."""

    state: str
    predictions: bytes
    summary: dict[str, Any]
    events: list[dict[str, Any]]


def left(run: Path) -> Left:
    """The newest checkpoint's hash, predictions, summary and events."""
    newest = Checkpoints(run / "checkpoints", fingerprint={}).paths()[-1]
    state = verify_checkpoint(newest).state
    summary = json.loads((run / "summary.json").read_text())
    return Left(
        state_hash({name: part for name, part in state.items() if name not in {"sinks", "meter"}}),
        (run / "predictions.jsonl").read_bytes(),
        {name: value for name, value in summary.items() if name not in {"timing", "run"}},
        lines(run, "events"),
    )


def learned(run: Path, part: str = "learner") -> str:
    """The hash of one part of the newest checkpoint's state."""
    return state_hash(newest_state(run)[part])


def newest_state(run: Path) -> dict[str, Any]:
    """The state in the newest checkpoint, which must be good."""
    return verify_checkpoint(Checkpoints(run / "checkpoints", fingerprint={}).paths()[-1]).state


def lines(run: Path, topic: str) -> list[dict[str, Any]]:
    """The records of a topic; none where there is no such file."""
    path = run / f"{topic}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# -- hooks: called in the forked process, before the command line -------------------------------------------

_DISK = "create append write fsync truncate mkdir replace link unlink rmdir fsync_folder"
_LEARNER = "learn consolidate state_dict load_state_dict"
_LOOP = "begin commit restore process finish"
POINTS = {
    "streamcl.storage.files:Disk": _DISK,
    "streamcl.learners.online_lora:OnlineLoRALearner": _LEARNER,
    "streamcl.learners.ridge:RidgeLearner": _LEARNER,
    "streamcl.learners.latent_ridge_lora:LatentRidgeLoRALearner": _LEARNER,
    "streamcl.processor.loop:StreamProcessor": _LOOP,
    "streamcl.processor.event_log:Quarantine": "take",
    "streamcl.processor.observers:PredictionLog": "after_batch",
    "streamcl.processor.observers:StepMetricsLog": "after_batch",
    "streamcl.processor.observers:HoldoutEvaluation": "_evaluate",
    "streamcl.processor.shift_handler:ShiftHandler": "_update_detector",
    "streamcl.storage.checkpoint:Checkpoints": "save _fill _prune latest sweep",
    "streamcl.storage.checkpoint:BackgroundSaver": "save wait close",
    "streamcl.sinks.jsonl:JsonlSink": "flush load_state_dict _drain",
    "streamcl.runs.run:Run": "finish close",
    "streamcl.storage.lock:RunLock": "acquire",
    "streams.user.source:IterableSource": "load_state_dict _next_event",
    "streams.live.source:LiveSource": "load_state_dict _hand_out acknowledge _pass_on",
    "streams.live.arrival_log:ArrivalLog": "append drop_before",
    "streams.live.brokers.redis_streams:RedisReader": "open poll replay advance acknowledge",
    "streams.live.brokers.kafka:KafkaReader": "open poll replay advance acknowledge",
    "streams.live.files.listing:ListingReader": "open poll replay advance acknowledge",
    "streamcl.forgetting.ledger.ledger:Ledger": "submit start finish",
}
"""Methods whose calls are the phases of a run."""


def kill_at(note: str, *, number: int = 0, point: str = "", times: int = 1) -> None:
    """Die by SIGKILL at call `number` of all that are watched, or at the `times`th call of `point`.

    Each call is noted in the file `note`, one name a line; the last one is where it died, since no other
    thread writes between that line and the kill.
    """
    calls: Counter[str] = Counter()
    file, lock = os.open(note, os.O_WRONLY | os.O_CREAT | os.O_APPEND), threading.Lock()

    def watch(name: str) -> None:
        with lock:
            calls[name] += 1
            os.write(file, (name + "\n").encode())
            if calls.total() == number or (name == point and calls[name] == times):
                os.kill(os.getpid(), signal.SIGKILL)

    watched = set[str]()
    for dotted, names in POINTS.items():
        owner = _owner(dotted)
        for name in names.split():
            watched.add(f"{owner.__name__}.{name}")
            _before(owner, name, f"{owner.__name__}.{name}", watch)
    if point and point not in watched:
        raise ValueError(f"{point} is not watched, so nothing would be killed there")


def signal_at(point: str, times: int, which: int = signal.SIGTERM) -> None:
    """Send this process a signal, `times` times, at the second call of a point in the program.

    point: `module:Class.method`, or `module.function` where it is called by that name.
    """
    dotted, _, name = point.rpartition(".")
    calls = [0]

    def watch(_: str) -> None:
        calls[0] += 1
        if calls[0] == 2:
            for _ in range(times):
                os.kill(os.getpid(), which)
                time.sleep(0.05)  # two signals that come together are one

    _before(_owner(dotted), name, point, watch)


def full_disk(after: int, kind: str = "enospc") -> None:
    """No space from the Nth call on that needs some (enospc), or one failing sync (eio)."""
    import errno

    calls = [0]

    def watch(name: str) -> None:
        calls[0] += 1
        if kind == "enospc" and calls[0] >= after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if kind == "eio" and calls[0] == after:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    needing = ("create", "write", "mkdir") if kind == "enospc" else ("fsync", "fsync_folder")
    for name in needing:
        _before(_owner("streamcl.storage.files:Disk"), name, name, watch)


def umask(mask: int) -> None:
    """What is made from here on has these bits taken away."""
    os.umask(mask)


def small_segments() -> None:
    """Stored latents and checkpoints have many files, as those of a long stream have."""
    from streamcl.learners import latent_factory

    latent_factory.STORED_SEGMENT_BYTES, array_files.SHARED_BYTES = 4096, 512


def odd_clock() -> None:
    """A wall clock that goes back an hour, then forward a year, and so on."""
    real, calls = time.time, [0]

    def jumping() -> float:
        calls[0] += 1
        return real() + (-3600.0, 365 * 86400.0)[calls[0] % 2] * (calls[0] % 3)

    time.time = jumping


def no_network() -> None:
    """Every attempt to reach a network is noted, and fails."""
    import socket

    def refused(*args: object, **kwargs: object) -> None:
        Path("network-was-called").write_text(repr(args))
        raise OSError("no network")

    socket.socket.connect = refused  # type: ignore[method-assign, assignment]
    socket.getaddrinfo = refused  # type: ignore[assignment]


def not_finite(first: int, last: int) -> None:
    """The gradients of steps number `first` to `last` (from 1) are NaN."""
    from streamcl.learners.adapter_model import AdapterModel

    real, calls = AdapterModel.gradients, [0]

    def gradients(self: Any, loss: Any) -> Any:
        calls[0] += 1
        return real(self, loss * float("nan") if first <= calls[0] <= last else loss)

    AdapterModel.gradients = gradients  # type: ignore[method-assign]


def out_of_memory(at: tuple[int, ...], largest: int) -> None:
    """Learning steps number `at` (from 1) with more than `largest` samples run out of memory half-way."""
    import torch

    from streamcl.learners.adapter_model import AdapterModel

    real, calls, size = AdapterModel.gradients, [0], [0]

    def gradients(self: Any, loss: Any) -> Any:
        calls[0] += 1
        if calls[0] in at and size[0] > largest:
            raise torch.OutOfMemoryError("tried to allocate 20 GiB")
        return real(self, loss)

    read = AdapterModel.forward

    def noted(self: Any, batch: Any, beside: Any = ()) -> Any:
        size[0] = len(batch)
        return read(self, batch, beside)

    AdapterModel.gradients = gradients  # type: ignore[method-assign]
    AdapterModel.forward = noted  # type: ignore[method-assign]


def _owner(dotted: str) -> Any:
    import importlib

    module, _, name = dotted.partition(":")
    found = importlib.import_module(module)
    return getattr(found, name) if name else found


def _before(owner: Any, name: str, label: str, watch: Callable[[str], None]) -> None:
    real = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        watch(label)
        return real(*args, **kwargs)

    setattr(owner, name, wrapped)
