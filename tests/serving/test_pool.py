"""The pool of predictors: one that hangs is replaced, whatever it was given."""

import asyncio
import multiprocessing
import os
import signal
from dataclasses import replace

import pytest
from tiny_runs import configuration

from streamcl.runs.open import open_run
from streamcl.serving.prediction.batching import Batcher
from streamcl.serving.prediction.pool import PredictorOptions, PredictorPool
from streamcl.storage.snapshots import SNAPSHOTS, Snapshots

LARGE = bytes(8 << 20)  # more than the connection takes while nobody reads it


@pytest.mark.slow
@pytest.mark.parametrize("image", [b"small", LARGE], ids=["small", "large"])
def test_a_predictor_that_hangs_is_replaced_and_its_images_are_answered(tmp_path, image):
    folder = tmp_path / "run"
    with open_run(configuration(tmp_path, max_samples=16), snapshots=Snapshots(folder / SNAPSHOTS)) as run:
        list(run)
    outcome = asyncio.run(_answered_after_a_hang(folder, image))
    assert isinstance(outcome.result, str)  # it is no image, as the second predictor says


async def _answered_after_a_hang(folder, image):
    batcher = Batcher(max_batch=4, max_delay=0.0, capacity=8)
    patient = PredictorOptions()
    pool = PredictorPool(folder, batcher, patient)
    pool.start()
    try:
        await _until(lambda: pool.ready == 1)
        (process,) = (each for each in multiprocessing.active_children() if each.name == "predictor")
        os.kill(process.pid, signal.SIGSTOP)
        pool.options = replace(patient, timeout=0.5)
        (answer,) = batcher.submit([image], 1)
        await _until(lambda: pool.restarts == 1)
        pool.options = patient
        return await asyncio.wait_for(answer, 120)
    finally:
        await pool.close()


async def _until(condition):
    async with asyncio.timeout(120):
        while not condition():
            await asyncio.sleep(0.02)
