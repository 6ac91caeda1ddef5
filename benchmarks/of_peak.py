"""Prints what share of the measured matrix peak a learning step reaches, and where the rest of its time goes.

    python benchmarks/of_peak.py [--learner online_lora] [--backbone vit_base_patch16_224] [--size 224]
        [--batch 64] [--precision bf16-mixed|32-true|auto] [--device auto|cpu|cuda] [--steps 10] [--rounds 5]

Peak: the best of several products of square matrices in the same precision, in turns with the steps.
Operations are those of the products that a step really makes, counted by torch (a frozen weight has no
gradient, so the way back costs hardly more than the way there; attention included, elementwise work not). A
step is `learn` of a batch of random images, decoding and the loop left out. The profile is of the slowest
operations, by their own time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from machine import machine
from published_learner import learner_options
from scaling import configuration, samples, vit
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from streamcl.events import Batch
from streamcl.factory.backbone import build_compute, build_vit
from streamcl.factory.parts import build_learner
from streamcl.nn.device import Compute, wait_for


def main() -> None:
    """Measure in turns, and print."""
    args = _arguments()
    config = configuration(
        learner=learner_options(args.learner),
        batch=args.batch,
        precision=args.precision,
        device=args.device,
        backbone=vit(args.backbone, args.size),
    )
    compute = build_compute(config)
    learner = build_learner(config, build_vit(config, compute), compute)
    batch = Batch(0, tuple(samples(args.batch, args.size)))

    def step() -> None:
        learner.learn(batch)

    for _ in range(3):  # the hard buffer fills, kernels are chosen
        step()
    counter = FlopCounterMode(display=False)
    with counter:
        step()
    per_step = counter.get_total_flops()
    side = 8192 if compute.device.type == "cuda" else 2048
    multiply, per_product = _product(side, compute), 2 * side**3
    multiply()
    steps, peaks = [], []
    for _ in range(args.rounds):
        peaks.append(per_product / min(_seconds(multiply, compute) for _ in range(5)))
        steps.append(per_step / (_seconds(step, compute, args.steps) / args.steps))
    shares = np.percentile(np.array(steps) / np.array(peaks), [25, 50, 75])
    print(machine(compute), f"{args.learner}, {args.backbone}, {args.size} px, batch {args.batch},", compute)
    print(f"operations of a step: {per_step / 1e9:.1f} G, {per_step / args.batch / 1e9:.2f} G an image")
    print(f"matrix peak: {np.median(peaks) / 1e12:.2f} T/s; a step: {np.median(steps) / 1e12:.2f} T/s")
    print(f"share of the peak: {shares[1]:.2f} ({shares[0]:.2f} - {shares[2]:.2f})")
    print(_profiled(step, compute))


def _product(side: int, compute: Compute) -> Callable[[], None]:
    dtype = torch.bfloat16 if compute.precision == "bf16-mixed" else torch.float32
    left, right = (torch.randn(side, side, device=compute.device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)

    def multiply() -> None:
        torch.mm(left, right, out=out)

    return multiply


def _seconds(run: Callable[[], None], compute: Compute, times: int = 1) -> float:
    wait_for(compute.device)
    began = time.perf_counter()
    for _ in range(times):
        run()
    wait_for(compute.device)
    return time.perf_counter() - began


def _profiled(step: Callable[[], None], compute: Compute) -> str:
    cuda = compute.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as found:
        step()
        wait_for(compute.device)
    by = f"self_{compute.device.type}_time_total"
    return str(found.key_averages().table(sort_by=by, row_limit=15, max_name_column_width=60))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--learner", default="online_lora")
    parser.add_argument("--backbone", default="vit_base_patch16_224")
    parser.add_argument("--size", type=int, default=224, help="side in pixels that the backbone sees")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--precision", default="auto", choices=["auto", "32-true", "bf16-mixed"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=10, help="learning steps in one round")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
