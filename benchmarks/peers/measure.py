"""Times one method of one peer and prints a line of JSON.

    python benchmarks/peers/measure.py with_avalanche --work FOLDER --method slda

A peer is a module with `METHODS`, by the name of the work that they do. A method gets the `Work` and returns
`Prepared`: `learn` passes once through the stream, each image predicted before it is learned, and `predict`
names the classes of images. Only `learn` is timed. Memory is the largest resident size of the process until
then, with the work's images and everything that the peer imports.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from code_lines import lines_of
from energy import EnergyMeter
from torch import Tensor
from work import Work, read_work


class Prepared(NamedTuple):
    """What is timed, the predictions after it, uint8 [B, 3, S, S] -> class numbers [B], and what ends it."""

    learn: Callable[[], object]
    predict: Callable[[Tensor], Tensor]
    close: Callable[[], object] = lambda: None


Method = Callable[[Work], Prepared]
TORCHVISION = Path(__file__).parents[2] / "streamcl" / "sources" / "torchvision_package.py"


def main() -> None:
    """Run the method that the command line names, and print its figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("peer", help="a module beside this one, such as with_avalanche")
    parser.add_argument("--work", type=Path, required=True, help="a folder that run.py wrote")
    parser.add_argument("--method", required=True)
    args = parser.parse_args()
    declare_operators()
    print(json.dumps(measure(importlib.import_module(args.peer).METHODS[args.method], read_work(args.work))))


def measure(method: Method, work: Work) -> dict[str, Any]:
    """Return the figures of a method: images/s, MiB, accuracy, lines; joules where there are counters."""
    torch.set_num_threads(work.options["threads"])
    torch.manual_seed(work.options["seed"])
    prepared = method(work)
    meter = EnergyMeter()
    counters, began, used = meter.read(), time.perf_counter(), time.process_time()
    prepared.learn()
    seconds, processor = time.perf_counter() - began, time.process_time() - used
    joules = meter.joules(counters)
    peak, right = peak_mib(), accuracy(prepared, work)
    prepared.close()
    return {
        "images_per_s": len(work.images) / seconds,
        "images_per_cpu_s": len(work.images) / processor,
        "joules_per_image": None if joules is None else joules / len(work.images),
        "peak_mib": peak,
        "accuracy": right,
        "lines": lines_of(method),
    }


def declare_operators() -> None:
    """Make `import torchvision` work beside a torch of another build, by streamcl's file for that."""
    spec = importlib.util.spec_from_file_location("torchvision_package", TORCHVISION)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # what it declares ends with the module
    spec.loader.exec_module(module)
    module.declare_torchvision_operators()


def accuracy(prepared: Prepared, work: Work) -> float:
    """Return the share of held-out images whose class is named."""
    with torch.no_grad():
        named = [prepared.predict(images) for images in work.test_images.split(work.batch)]
    return float((torch.cat(named) == work.test_labels).double().mean())


def peak_mib() -> float:
    """Return the largest resident size of this process, in MiB: of this program alone, unlike getrusage's."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    if not found:
        raise SystemExit("the kernel shows no VmHWM in /proc/self/status")
    return int(found[1]) / 1024


if __name__ == "__main__":
    main()
