"""Small reference runs, whose states and predictions a refactoring must keep bit for bit.

    python tests/golden/reference_runs.py --out FILE.json [--only NAME ...] [--exact FILE.json]

Each run goes the public way: a configuration given to `open_run`, or the command line where a process of
its own is needed. --out writes what was found. --exact compares it with an earlier file, names every
difference and exits 1 where there is one; --rename OLD=NEW (repeated) says what a word of the earlier file is
called now: a method, a kind of event, a string in a state. Exact comparisons hold on one machine with one
build of torch. --approx writes what holds across processors, for expected.json beside this file: the keys
that are the same with ATEN_CPU_CAPABILITY=default, MKL_ENABLE_INSTRUCTIONS=SSE4_2, ONEDNN_MAX_CPU_ISA=SSE41
and OPENBLAS_CORETYPE=Nehalem as without; --steady FILE leaves out those that differ from that earlier file.

Of each run there is:

state        of learner, detector and scores: the sha256 of the sorted hashes of all leaves that are no
             strings (arrays by dtype, shape and bytes, numbers by their repr), so names and order of keys do
             not count; how many such leaves there are; and the strings, each with how often it occurs.
predictions  the sha256 of (id, offset, label, predicted, confidence) of every prediction.
log          the same of what the run directory keeps of them, after erasures.
events       kind and offset of each event.
receipts     outcome, guarantee, method, learned samples and offset of each request.
approx       figures that hold across processors, to 3 significant digits; sha256 of predicted labels.

Everything that has to follow when the product's words change is in the section "the product's words".
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

# -- the product's words: configuration keys, module paths, attributes, fields of files ----------------------

THIS = "reference_runs"
"""This module, as a configuration names it; its folder is on the path."""

PACKAGE = "streamcl"

BACKBONE = {
    "name": "vit_tiny_patch16_224",
    "weights": "none",
    "image_size": 32,
    "args": {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2},
}

_STRONG = {  # learns enough in a few steps that there is something to forget
    "name": "online_lora",
    "first_block": 1,
    "learning_rate": 1e-2,
    "regularisation": 0.0,
    "mask_absent": False,
    "hard_buffer_size": 16,
    "buffer_weight": "batch",
}
_BRANCH = {"first_block": 1, "warmup_samples": 48}

LEARNERS: dict[str, dict[str, Any]] = {
    "ridge": {"name": "ridge", "blocks": [1, 2]},
    "ridge_plain": {"name": "ridge", "blocks": [1], "tta_views": 2, "variance_ridge": None, "projection": 64},
    "hybrid": {"name": "ridge_lora", "ridge": {"blocks": [1, 2]}, "lora": _BRANCH},
    "latents": {
        "name": "ridge_lora",
        "ridge": {"blocks": [1, 2]},
        "lora": {"first_block": 1},
        "latents": {"budget": "256kB", "first_samples": 32, "learning_rate": 1e-2},
    },
    "latents_thinned": {  # two views, and room for a half and then a quarter of the samples
        "name": "ridge_lora",
        "ridge": {"blocks": [1, 2]},
        "lora": {"first_block": 1},
        "latents": {"budget": "48kB", "views": 2, "first_samples": 32, "passes": 2, "share": 0.5},
    },
    "mixed": {
        "name": "mixed_privacy",
        "ridge": {"blocks": [1, 2]},
        "lora": _BRANCH,
        "users": {"tangents": 24, "noise": 1e-3},
    },
    "cohorts": {
        "name": "cohort_adapters",
        "cohort_by": "domain",
        "ridge": {"blocks": [1, 2]},
        "lora": _BRANCH,
    },
    "cohorts_crowded": {
        "name": "cohort_adapters",
        "cohort_by": "subject",
        "max_adapters": 2,
        "ridge": {"blocks": [1, 2]},
        "lora": {"first_block": 1, "warmup_samples": 16},
    },
    "online_lora": {"name": "online_lora", "learning_rate": 0.01, "first_block": 1, "hard_buffer_size": 4},
    "online_lora_strong": _STRONG,
    "online_lora_low_pass": {
        "name": "online_lora",
        "learning_rate": 0.01,
        "hard_buffer_size": 4,
        "last_blocks": 2,
        "backprop": {"lbp_wht": {"order": 2}},
    },
    "ncm": {"name": "ncm", "blocks": [1, 2]},
    "slda": {"name": "slda", "blocks": [1, 2]},
    "reconstruct": {"name": "reconstruct", "blocks": [1, 2]},
    "frozen_linear": {"name": "frozen_linear"},
    "naive_lora": {"name": "naive_lora", "first_block": 1, "learning_rate": 5e-3},
    "er": {"name": "er", "replay_size": 12, "first_block": 1, "learning_rate": 5e-3},
    "der_pp": {"name": "der_pp", "replay_size": 12, "first_block": 1, "learning_rate": 5e-3},
    "ewc_pp": {"name": "ewc_pp", "first_block": 1, "learning_rate": 5e-3},
}

DETECTORS: dict[str, Any] = {
    "relative": {"name": "relative_rise", "min_samples": 8},
    "often": {
        "name": "plateau",
        "window": 3,
        "mean_threshold": 20.0,
        "variance_threshold": 100.0,
        "min_samples": 8,
    },
    "plateau": {"name": "plateau", "window": 4, "mean_threshold": 2.5, "variance_threshold": 0.5},
    "river": {"name": "river", "detector": "PageHinkley", "args": {"min_instances": 4, "threshold": 1.0}},
    "none": "none",
}

KEPT_SUMS = {"class": "per_class", "subject": "per_subject"}
METHODS = {
    "all users": "all_users",
    "closed form": "closed_form",
    "crowded cohort": "drop_cohort_approximate",
    "dropped adapter": "drop_branch",
    "dropped cohort": "drop_cohort",
    "fast NTK": "fast_ntk",
    "GS-LoRA": "gs_lora",
    "head rows": "head_only",
    "mixed privacy": "mixed_privacy",
    "nothing": "no_op",
}

ON_RETURN = {"allow": "learn", "deny": "drop"}


def configuration(
    folder: Path,
    learner: str,
    *,
    detector: str = "often",
    passing: bool = False,
    forget: Iterable[dict[str, Any]] = (),
    sums: str | None = None,
    checkpoint: int = 64,
    examine: bool = True,
    **source: Any,
) -> dict[str, Any]:
    """A short run. passing: the stream can be read once only. forget: made by `scheduled`."""
    made = {"class": f"{THIS}:{'passing' if passing else 'Pictures'}", "args": source}
    return {
        "name": "reference",
        "run_dir": str(folder / "run"),
        "seed": 7,
        "source": made,
        "batch": 8,
        "backbone": BACKBONE,
        "learner": LEARNERS[learner],
        "shift": DETECTORS[detector],
        "checkpoint": {"every_samples": checkpoint},
        "evaluate": {
            "hold_out": 0,
            "every_samples": 64 if examine else None,
            "at_part_end": examine,
            "at_stream_end": examine,
        },
        "forgetting": {
            "requests": list(forget),
            **({"keep_statistics": KEPT_SUMS[sums]} if sums else {}),
        },
        "precision": "32-true",
        "device": "cpu",
        "threads": 1,
        "report": {"samples": 1},
    }


_WISHES = {  # what a request names: in a configuration, in a call of `forget`, on the command line
    "class": ("class", "label", "--class"),
    "subject": ("subject", "subject", "--subject"),
    "ids": ("ids", "ids", "--ids"),
    "pattern": ("id_pattern", "id_pattern", "--id-pattern"),
    "domain": ("domain", "domain", "--domain"),
    "offsets": ("offsets", "offsets", "--offsets"),
    "all users": ("all_users", "all_users", "--all-users"),
    "method": ("method", "method", "--method"),
    "relearn": ("on_return", "on_return", "--on-return"),
    "guarantee": ("guarantee", "guarantee", "--guarantee"),
}


def _wish(what: Mapping[str, Any], place: int) -> dict[str, Any]:
    words = {"method": METHODS, "relearn": ON_RETURN}
    told = {name: words[name][value] if name in words else value for name, value in what.items()}
    return {_WISHES[name.replace("_", " ")][place]: value for name, value in told.items()}


def scheduled(at: int, what: Mapping[str, Any]) -> dict[str, Any]:
    """A request in a configuration."""
    return {"offset": at, **_wish(what, 0)}


def ask(run: Any, name: str, what: Mapping[str, Any]) -> None:
    """A request to an open run."""
    run.forget(id=name, **_wish(what, 1))


def asking(folder: Path, what: Mapping[str, Any]) -> list[str]:
    """A request on the command line."""
    return ["forget", str(folder / "run"), *(str(part) for pair in _wish(what, 2).items() for part in pair)]


def running(config: Path) -> list[str]:
    """A run on the command line."""
    return ["run", str(config), "--quiet"]


def opened(config: Mapping[str, Any]) -> Any:
    """An open run, a context manager."""
    import streamcl

    return streamcl.open_run(config)


def states_of(run: Any) -> dict[str, Any]:
    """The state of each part that has one."""
    return {
        "learner": run.learner.state_dict(),
        "detector": run.processor.parts.detector.state_dict(),
        "scores": run.processor.parts.scores.state_dict(),
    }


def figures_of(run: Any) -> dict[str, Any]:
    """What a run came to, by the summary."""
    summary = run.summary()
    return {
        "accuracy": summary["prequential"]["accuracy"],
        "held-out figures": _numbers(summary["holdout"] | {"calibration_error": None}),  # few samples a bin
        "shifts": summary["shifts"]["total"],
        "consolidations": summary["consolidated"],
        "quarantined": summary["quarantined"],
        "samples": summary["samples"],
        "classes": summary["classes"],
        "finished": summary["finished"],
    }


def offset_of(prediction: Any) -> int:
    """Which record it is for."""
    return int(prediction.offset)


def told_by(prediction: Any) -> tuple[Any, ...]:
    """A prediction as plain data."""
    return (
        prediction.id,
        prediction.offset,
        prediction.label,
        prediction.predicted,
        repr(prediction.confidence),
    )


def logged(folder: Path) -> list[tuple[Any, ...]]:
    """The predictions that the run directory keeps; of erased ones only the offset is left."""
    fields = ("id", "offset", "label", "predicted", "confidence")
    return [
        tuple(repr(line.get(name)) if name == "confidence" else line.get(name) for name in fields)
        for line in _lines(folder / "run" / "predictions.jsonl")
    ]


def events_of(folder: Path) -> list[list[Any]]:
    """Kind and offset of each event."""
    return [[line.get("kind"), line.get("offset")] for line in _lines(folder / "run" / "events.jsonl")]


def receipts_of(folder: Path) -> list[dict[str, Any]]:
    """What came of each request, in the order of their offsets."""
    found = []
    for path in sorted((folder / "run" / "receipts").glob("*.json")):
        receipt = json.loads(path.read_text())
        found.append(
            {
                "outcome": receipt["outcome"],
                "guarantee": receipt.get("guarantee"),
                "method": receipt.get("method"),
                "learned": receipt.get("scope", {}).get("learned"),
                "offset": receipt["offset"],
            }
        )
    return sorted(found, key=lambda each: each["offset"])


def record(index: int, label: str | None, subject: str | None, domain: str, image: Any) -> dict[str, Any]:
    """A record as a stream gives it."""
    private = subject is not None and subject.startswith("user")
    return {
        "image": image,
        "label": label,
        "id": f"{domain}-{index:04d}",
        "domain": domain,
        "privacy": "user" if private else "core",
        **({} if subject is None else {"subject": subject}),
    }


class Pictures:
    """A stream read by index, which shows other classes in another light from its middle on.

    Every 16th record has no label, record 21 no picture.
    kill_at: die by SIGKILL at this record, unless the file `marker` is there.
    """

    def __init__(self, records: int = 160, kill_at: int | None = None, marker: str = "") -> None:
        self.records, self.kill_at, self.marker = records, kill_at, Path(marker)
        self.shifts = [records // 2]
        self.holdout = {
            domain: [
                record(10_000 + number, label, None, domain, picture(label, domain, 10_000 + number))
                for label in labels
                for number in range(3)
            ]
            for domain, labels in CLASSES.items()
        }

    def __len__(self) -> int:
        return self.records

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.records:
            raise IndexError(index)
        if index == self.kill_at and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return shown(index, self.records)


def passing(records: int = 160) -> Iterator[dict[str, Any]]:
    """The same records, which pass once and cannot be brought back."""
    return (shown(index, records) for index in range(records))


# -- the stream ----------------------------------------------------------------------------------------------

CLASSES = {"day": ("ant", "bee", "cat"), "night": ("cat", "dog", "elk")}
SUBJECTS = (None, "shop", "user-1", "shop", "user-2", None, "user-3")
UNLABELLED, BAD = 11, 21


def shown(index: int, records: int) -> dict[str, Any]:
    """The record at an index."""
    domain = "night" if 2 * index >= records else "day"
    label = CLASSES[domain][int(np.random.default_rng(index).integers(3))]
    image = None if index == BAD else picture(label, domain, index)
    return record(
        index, None if index % 16 == UNLABELLED else label, SUBJECTS[index % len(SUBJECTS)], domain, image
    )


def picture(label: str, domain: str, number: int) -> np.ndarray[Any, Any]:
    """uint8 [32, 32, 3]: stripes whose direction, colour and width the class decides, darker at night."""
    look = np.random.default_rng(sum(label.encode()))
    noise = np.random.default_rng(number)
    wave = np.sin(np.arange(32) * look.uniform(0.3, 1.5)) * 50
    plane = wave[:, None] if look.random() < 0.5 else wave[None, :]
    image = plane[..., None] + look.uniform(60, 215, 3) + noise.normal(0, 25, (32, 32, 3))
    return np.clip(image * (0.5 if domain == "night" else 1.0), 0, 255).astype(np.uint8)


# -- hashes --------------------------------------------------------------------------------------------------


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _leaves(item)
    elif hasattr(value, "detach"):
        yield value.detach().cpu().numpy()
    else:
        yield value


def _leaf(value: Any) -> str:
    if isinstance(value, np.ndarray | np.generic):
        array = np.ascontiguousarray(value)
        head = f"{array.dtype.str} {np.shape(value)} ".encode()
        return hashlib.sha256(head + array.tobytes()).hexdigest()
    return hashlib.sha256(f"{type(value).__name__} {value!r}".encode()).hexdigest()


def fingerprint(state: Any) -> dict[str, Any]:
    """Of a state, whatever its keys are called and however they are ordered."""
    leaves = list(_leaves(state))
    hashes = sorted(_leaf(leaf) for leaf in leaves if not isinstance(leaf, str))
    strings = Counter(leaf for leaf in leaves if isinstance(leaf, str))
    return {"sha256": digest(hashes), "leaves": len(hashes), "strings": dict(sorted(strings.items()))}


def digest(content: Any) -> str:
    """The sha256 of plain data."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _numbers(value: Any) -> list[float]:
    return [
        float(leaf) for leaf in _leaves(value) if isinstance(leaf, int | float) and not isinstance(leaf, bool)
    ]


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.3g}") if isinstance(value, float) else value


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# -- how a run is driven -------------------------------------------------------------------------------------

Result = dict[str, Any]


def collected(run: Any, folder: Path, predictions: list[Any] | None) -> Result:
    """What is compared of a run that is over."""
    log = logged(folder)
    told = log if predictions is None else [told_by(prediction) for prediction in predictions]
    return {
        "state": {name: fingerprint(state) for name, state in states_of(run).items()},
        "predictions": digest(told),
        "log": digest(log),
        "events": events_of(folder),
        "receipts": receipts_of(folder),
        "approx": {
            **{name: _rounded(value) for name, value in figures_of(run).items()},
            "predicted": digest([each[3] for each in told]),
        },
    }


def plain(
    folder: Path, learner: str, *, asked: Mapping[int, Mapping[str, Any]] | None = None, **options: Any
) -> Result:
    """A run in one piece. asked: requests put at the first prediction at or past an offset, in that order."""
    waiting = list((asked or {}).items())
    with opened(configuration(folder, learner, **options)) as run:
        predictions = []
        for prediction in run:
            predictions.append(prediction)
            while waiting and offset_of(prediction) >= waiting[0][0]:
                at, what = waiting.pop(0)
                ask(run, f"asked-{at}", what)
        assert not waiting, f"never asked: {waiting}"
        return collected(run, folder, predictions)


def stopped(
    folder: Path, learner: str, *, at: int = 75, told: Mapping[str, Any] | None = None, **options: Any
) -> Result:
    """A run that is stopped and goes on with new objects. told: asked by the command line in between."""
    config = configuration(folder, learner, **options)
    predictions = []
    with opened(config) as run:
        for prediction in run:
            predictions.append(prediction)
            if offset_of(prediction) == at:
                run.stop()
    if told is not None:
        done = subprocess.run(
            command(asking(folder, told)), env=environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    with opened(config) as run:
        predictions.extend(run)
        return collected(run, folder, predictions)


def killed(folder: Path, learner: str, *, at: int = 107, **options: Any) -> Result:
    """A process that dies by SIGKILL in the middle of the stream, and a run in this one that goes on."""
    config = configuration(
        folder, learner, checkpoint=32, kill_at=at, marker=str(folder / "killed"), **options
    )
    (done,) = processes(folder, config, [{}])
    assert done[0] == -signal.SIGKILL, done
    with opened(config) as run:
        for _ in run:
            pass
        return collected(run, folder, None)


def ranks(folder: Path, learner: str, **options: Any) -> Result:
    """A run on two ranks, which this process opens when it is finished."""
    config = configuration(folder, learner, **options)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    common["GLOO_SOCKET_IFNAME"] = "lo"
    each = [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    for code, text in processes(folder, config, each):  # torch now and then aborts as a finished rank exits
        assert code in (0, -signal.SIGABRT), text
    with opened(config) as run:
        return collected(run, folder, None)


def processes(
    folder: Path, config: Mapping[str, Any], environments: Iterable[Mapping[str, str]]
) -> list[tuple[int, str]]:
    """Run a configuration by the command line, once for each environment at a time; exit codes and words."""
    path = folder / "stream.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    started = [
        subprocess.Popen(
            command(running(path)),
            cwd=folder,
            env=environment() | dict(extra),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for extra in environments
    ]
    done = []
    try:
        for process in started:
            words = process.communicate(timeout=90)[1]
            done.append((process.returncode, words))
    finally:
        for process in started:
            process.kill()
    return done


def command(arguments: Iterable[str]) -> list[str]:
    """The command line as a process."""
    return [sys.executable, "-m", PACKAGE, *arguments]


def environment() -> dict[str, str]:
    """Of a process that finds the product and this module."""
    path = os.pathsep.join([str(HERE), str(ROOT)])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


# -- the runs ------------------------------------------------------------------------------------------------

DAY_CLASS, LASTING_CLASS = {"class": "bee"}, {"class": "cat"}
USER = {"subject": "user-1"}
IDS = {"ids": ["day-0003", "day-0005", "day-0008", "day-0021", "day-0027"]}
PATTERN = {"pattern": "day-001?"}
OFFSETS = {"offsets": [30, 50]}
DOMAIN = {"domain": "day"}
USERS = {"all_users": True}
KINDS = {
    "class": DAY_CLASS,
    "subject": USER,
    "ids": IDS,
    "pattern": PATTERN,
    "offsets": OFFSETS,
    "domain": DOMAIN,
    "users": USERS,
}

RUNS: dict[str, Callable[[Path], Result]] = {}


def add(name: str, drive: Callable[..., Result], learner: str, **options: Any) -> None:
    """A run under a name."""
    RUNS[name] = lambda folder: drive(folder, learner, **options)


def add_all() -> None:
    """Every run."""
    for learner in LEARNERS:
        add(f"learner/{learner}", plain, learner)
    for detector in DETECTORS:
        add(f"shift/{detector}", plain, "hybrid", detector=detector, records=224, examine=False)
    add("shift/relative-online_lora", plain, "online_lora", detector="relative", records=224, examine=False)
    add("shift/river-frozen_linear", plain, "frozen_linear", detector="river", records=224, examine=False)

    for learner in ("ridge", "slda", "latents", "cohorts", "mixed", "online_lora", "der_pp", "ewc_pp"):
        add(f"stopped/{learner}", stopped, learner)
    add("stopped/hybrid-relative", stopped, "hybrid", detector="relative", at=100)
    add("killed/hybrid", killed, "hybrid")
    add("ranks/hybrid", ranks, "hybrid", forget=[scheduled(96, DAY_CLASS)])
    add("ranks/online_lora", ranks, "online_lora", forget=[scheduled(96, DAY_CLASS)])

    _add_closed_forms()
    _add_trained()
    _add_others()


def _add_closed_forms() -> None:
    for kind, what in KINDS.items():
        add(f"forget/ridge-{kind}", plain, "ridge", forget=[scheduled(64, what)], examine=False)
    add(
        "forget/ridge-asked",
        plain,
        "ridge",
        asked={40: PATTERN, 63: USER, 95: LASTING_CLASS, 120: {"ids": ["never-1"]}, 130: {"class": "elk"}},
    )
    add("forget/ridge-told", stopped, "ridge", told=DAY_CLASS)
    for answer in ("allow", "deny"):
        what = {**LASTING_CLASS, "relearn": answer}
        add(f"forget/ridge-relearn-{answer}", plain, "ridge", forget=[scheduled(64, what)])
        add(f"forget/online_lora-relearn-{answer}", plain, "online_lora", forget=[scheduled(64, what)])
    add("forget/slda-class", plain, "slda", forget=[scheduled(64, DAY_CLASS), scheduled(100, USER)])
    add("forget/reconstruct", plain, "reconstruct", forget=[scheduled(64, USER), scheduled(100, DAY_CLASS)])
    add("forget/ncm", plain, "ncm", forget=[scheduled(64, USER), scheduled(100, DAY_CLASS)])
    for sums, whole in (("class", DAY_CLASS), ("subject", USER)):
        for learner in ("ridge", "slda", "hybrid"):
            wanted = [
                scheduled(40, whole),
                scheduled(120, {"class": "dog"}),
                scheduled(136, {"subject": "shop"}),
            ]
            add(f"forget/{learner}-kept-{sums}", plain, learner, passing=True, sums=sums, forget=wanted)
    mixture = [scheduled(40, OFFSETS), scheduled(80, DAY_CLASS), scheduled(120, PATTERN)]
    add("forget/ridge-kept-partly", plain, "ridge", sums="class", forget=mixture)
    add("forget/ridge-passing-refused", plain, "ridge", passing=True, forget=[scheduled(64, DAY_CLASS)])
    add("forget/stopped-kept", stopped, "hybrid", sums="class", forget=[scheduled(96, DAY_CLASS)])


def _add_trained() -> None:
    strong = {"records": 256, "examine": False, "detector": "none"}
    for method in ("GS-LoRA", "fast NTK", "head rows"):
        for kind in ("class", "subject"):
            wanted = [scheduled(120, {**KINDS[kind], "method": method})]
            name = method.lower().replace(" ", "-")
            add(f"forget/{name}-{kind}", plain, "online_lora_strong", forget=wanted, **strong)
    add("forget/online_lora-asked", plain, "online_lora", asked={60: DAY_CLASS, 90: USER, 110: IDS})
    exact = {**DAY_CLASS, "guarantee": "exact"}
    add("forget/online_lora-exact-refused", plain, "online_lora", forget=[scheduled(64, exact)])
    for learner in ("frozen_linear", "er", "der_pp", "ewc_pp"):
        add(f"forget/{learner}", plain, learner, forget=[scheduled(64, DAY_CLASS), scheduled(96, USER)])


def _add_others() -> None:
    for learner in ("latents", "latents_thinned"):
        add(f"forget/{learner}", plain, learner, forget=[scheduled(64, USER), scheduled(136, DAY_CLASS)])
    add("forget/hybrid-dropped-adapter", plain, "hybrid", forget=[scheduled(64, USER)])
    late = {"offsets": [96, 112]}
    add("forget/hybrid-late", plain, "hybrid", forget=[scheduled(120, late)])
    add("forget/hybrid-exact-class", plain, "hybrid", asked={103: {**DAY_CLASS, "guarantee": "exact"}})
    add("forget/hybrid-early", plain, "hybrid", forget=[scheduled(24, IDS), scheduled(32, DAY_CLASS)])
    add("forget/cohorts-domain", plain, "cohorts", forget=[scheduled(120, DOMAIN)])
    add("forget/cohorts-class", plain, "cohorts", forget=[scheduled(64, DAY_CLASS), scheduled(96, USER)])
    add("forget/cohorts-crowded", plain, "cohorts_crowded", forget=[scheduled(96, {"subject": "shop"})])
    add("forget/mixed-subject", plain, "mixed", forget=[scheduled(96, USER)])
    kept = [scheduled(96, {**USER, "method": "mixed privacy"}), scheduled(128, {"subject": "shop"})]
    add("forget/mixed-sums", plain, "mixed", forget=kept)
    add("forget/mixed-all-users", plain, "mixed", asked={80: USERS})
    exact = {**USER, "guarantee": "exact"}
    add("forget/mixed-exact", plain, "mixed", asked={20: exact, 130: {**exact, "offsets": [104, 128]}})
    add("forget/mixed-relearn", plain, "mixed", forget=[scheduled(96, {**USER, "relearn": "allow"})])


add_all()

# -- comparing and writing -----------------------------------------------------------------------------------


def measured(names: Iterable[str], tell: Callable[[str], None] = lambda text: None) -> dict[str, Result]:
    """The results of some runs."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    results = {}
    for name in names:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            try:
                results[name] = json.loads(json.dumps(RUNS[name](Path(folder))))
            except Exception as error:  # the other runs tell more
                traceback.print_exc()
                results[name] = {"error": f"{type(error).__name__}: {error}"}
        tell(f"{time.perf_counter() - began:6.2f} s  {name}")
    return results


def renamed(value: Any, words: Mapping[str, str]) -> Any:
    """The same with words of an earlier version as they are called now."""
    if isinstance(value, dict):
        return {words.get(key, key): renamed(item, words) for key, item in value.items()}
    if isinstance(value, list):
        return [renamed(item, words) for item in value]
    return words.get(value, value) if isinstance(value, str) else value


def differences(now: Any, before: Any, place: str = "") -> Iterator[str]:
    """Where two results differ, and how."""
    if isinstance(now, dict) and isinstance(before, dict):
        for key in dict.fromkeys([*before, *now]):
            yield from differences(now.get(key), before.get(key), f"{place}: {key}" if place else key)
    elif isinstance(now, list) and isinstance(before, list) and len(now) == len(before):
        for number, (one, other) in enumerate(zip(now, before, strict=True)):
            yield from differences(one, other, f"{place}[{number}]")
    elif now != before:
        yield f"{place}: was {_brief(before)}, is {_brief(now)}"


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="where the results go")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="runs whose names begin so")
    parser.add_argument("--exact", type=Path, help="an earlier file to compare with")
    parser.add_argument(
        "--rename", action="append", default=[], metavar="OLD=NEW", help="a word of that file"
    )
    parser.add_argument("--approx", type=Path, help="write the figures that hold across processors")
    parser.add_argument("--steady", type=Path, help="a file of --approx, with which it has to agree")
    parser.add_argument("--list", action="store_true", help="name the runs and stop")
    options = parser.parse_args()
    names = [name for name in RUNS if not options.only or name.startswith(tuple(options.only))]
    if options.list:
        print("\n".join(names))
        return 0
    if not names:
        parser.error("no run has a name that begins so")
    began = time.perf_counter()
    results = measured(names, lambda text: print(text, flush=True))
    print(f"{time.perf_counter() - began:6.1f} s  {len(results)} runs")
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    if options.approx:
        figures = {name: result["approx"] for name, result in results.items()}
        if options.steady:
            figures = alike(figures, json.loads(options.steady.read_text()))
        options.approx.write_text(json.dumps(figures, indent=1) + "\n")
    return compared(results, options.exact, options.rename, whole=not options.only) if options.exact else 0


def alike(figures: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of each run that are the same in both."""
    return {
        name: {key: value for key, value in found.items() if others[name].get(key) == value}
        for name, found in figures.items()
    }


def compared(results: Mapping[str, Result], path: Path, renames: Iterable[str], *, whole: bool) -> int:
    """Say how the results differ from an earlier file; the exit code."""
    words = dict(pair.split("=", 1) for pair in renames)
    before = json.loads(path.read_text())
    wanted = {name: renamed(before[name], words) for name in before if whole or name in results}
    found = list(differences(dict(results), wanted))
    for line in found:
        print(line)
    print(f"{len(found)} differences from {path}" if found else f"the same as {path}")
    return bool(found)


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        sys.exit(main())
