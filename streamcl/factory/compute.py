"""Makes the device and the arithmetic of a run."""

from __future__ import annotations

import torch

from streamcl.config.options.run import RunConfig
from streamcl.distributed.process_group import SINGLE_PROCESS, ProcessGroup, local_rank
from streamcl.nn.device import Compute, resolve_compute
from streamcl.nn.malloc import keep_freed_memory


def build_compute(config: RunConfig, group: ProcessGroup = SINGLE_PROCESS) -> Compute:
    """The device and precision; torch's number of threads and what becomes of freed memory are the process's.

    Each of several ranks on a machine takes a GPU of its own, where there are any.
    """
    keep_freed_memory()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if group.world_size == 1:
        return resolve_compute(config.device, config.precision, config.batch_size)
    if config.device.startswith("cuda:"):
        raise config.refuse("device", f"{config.device} is one device for {group.world_size} ranks; say cuda")
    compute = resolve_compute(config.device, config.precision, config.batch_size)
    if compute.device.type != "cuda":
        return compute
    own = resolve_compute(f"cuda:{local_rank()}", config.precision)
    torch.cuda.set_device(own.device)
    return own
