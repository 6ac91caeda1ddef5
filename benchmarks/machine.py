"""The conditions of every measured figure: the date, the processor, how busy it was, the software."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path
from typing import Any

import torch

from streamcl.nn.device import Compute


def machine(compute: Compute) -> dict[str, Any]:
    names = (line.partition(":")[2].strip() for line in _cpu_lines() if line.startswith("model name"))
    cuda = compute.device.type == "cuda"
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "cpu": next(names, "unknown"),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "load": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []
