"""Measures on one GPU, in under ten minutes, all that a CPU cannot show, and writes it as one page.

    benchmarks/gpu.sh [--device cuda|cpu] [--small] [--only features,loop,peak,latency,pause] [--out FOLDER]

features: are they equal bit for bit in every company, compiled and as CUDA graphs? loop: whole runs beside
a bare LoRA step, compiled and with CUDA graphs or not. peak: share of the measured matrix peak, with a
profile. latency: one prediction. pause: exact requests. Weights and images are random, so nothing is
fetched. `--device cpu --small` runs all of it with tiny sizes anywhere, which tests the script and measures
nothing.
"""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Section:
    """A program, its arguments, and the seconds after which it is given up; all limits make nine minutes."""

    name: str
    title: str
    program: str
    arguments: tuple[str, ...]
    seconds: int


def sections(device: str, small: bool, scratch: Path) -> list[Section]:
    """Return what is to run: a ViT-B/16 at 224 pixels in bf16, or tiny sizes."""
    vit = ["--backbone", "vit_base_patch16_224", "--size", "224"]
    if small:
        vit = ["--backbone", "vit_tiny_patch16_224", "--size", "32"]
    vit += ["--device", device]
    random = ["--weights", "none", "--images", "random", "--depth", "2" if small else "0"]
    precision = ["--precision", "32-true" if small else "bf16-mixed"]
    batch = ["--batch", "8"] if small else ["--batch", "64"]
    loop = "forward,online_lora,ridge_lora,ridge,ridge_compiled,ridge_graphed,ridge_lora_graphed"
    rounds = ["--repeats", "3", "--only", loop]
    steps, few = [], []
    ways = ["--ways", "compiled;graphed;compiled, graphed"]
    if small:
        rounds = ["--repeats", "1", "--round", "64", "--begin", "64", "--only", "forward,ridge"]
        steps, few = ["--steps", "1", "--rounds", "1"], ["--samples", "64"]
        ways = ["--count", "20"]
    return [
        Section(
            "features",
            "Features, bit for bit",
            "bit_equality.py",
            (*vit, *random, *precision, *ways),
            90,
        ),
        Section(
            "loop",
            "Loop beside a bare LoRA step; compiled, CUDA graphs",
            "throughput.py",
            (*vit, *random, *precision, *batch, *rounds, "--out", str(scratch)),
            240,
        ),
        Section("peak", "Share of the matrix peak", "of_peak.py", (*vit, *precision, *batch, *steps), 60),
        Section("latency", "One prediction", "one_image.py", (*vit, *random, *few), 60),
        Section(
            "pause",
            "Pause of an exact request",
            "forgetting_pause.py",
            (str(scratch / "pause"), *vit, *random, *few),
            90,
        ),
    ]


def run(section: Section) -> str:
    """Return the section's output, or the reason why it has none."""
    command = [sys.executable, str(HERE / section.program), *section.arguments]
    shown = " ".join(["python", f"benchmarks/{section.program}", *section.arguments])
    began = time.perf_counter()
    try:
        done = subprocess.run(
            command, env=_environment(), capture_output=True, text=True, check=False, timeout=section.seconds
        )
        found = done.stdout if done.returncode == 0 else f"{done.stdout}failed: {_last(done.stderr)}\n"
    except subprocess.TimeoutExpired as error:
        printed = error.stdout or b""
        text = printed.decode() if isinstance(printed, bytes) else printed
        found = f"{text}given up after {section.seconds} s\n"
    took = time.perf_counter() - began
    return f"## {section.title}\n\n    {shown}\n\n{found.strip()}\n\n({took:.0f} s)\n"


def _last(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "no reason was given"


def _environment() -> dict[str, str]:
    roots = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, roots))}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sections one after the other, print and write the page; 1 where one of them failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--small", action="store_true", help="tiny sizes")
    parser.add_argument("--only", default="", help="names of sections, by commas")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args = parser.parse_args(arguments)
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    page = [f"# On a {'GPU' if args.device == 'cuda' else 'CPU'}, {date}\n"]
    with tempfile.TemporaryDirectory() as scratch:
        for section in sections(args.device, args.small, Path(scratch)):
            if args.only and section.name not in args.only.split(","):
                continue
            page.append(run(section))
            print(page[-1], flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    text = "\n".join(page)
    (args.out / f"{date}-{'gpu' if args.device == 'cuda' else 'cpu'}.md").write_text(text, encoding="utf-8")
    return int("failed: " in text or "given up after" in text)


if __name__ == "__main__":
    sys.exit(main())
