"""Makes the device and the arithmetic of a run."""

from __future__ import annotations

import torch

from streamcl.config.options.run import RunConfig
from streamcl.distributed.process_group import SINGLE_PROCESS, ProcessGroup, local_rank
from streamcl.nn.device import Compute, resolve_compute
from streamcl.nn.process_settings import configure_process


def build_compute(config: RunConfig, group: ProcessGroup = SINGLE_PROCESS) -> Compute:
    """Return the device and precision of a run, and make the settings of the process (`configure_process`).

    Each of several ranks on a machine takes a GPU of its own, where there are any.
    """
    configure_process(threads=config.threads)
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
