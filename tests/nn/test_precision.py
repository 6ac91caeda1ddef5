"""Which arithmetic `auto` comes to, and that a run keeps it whatever the start-up timing says later."""

import pytest
import torch
from log_messages import logged
from pictures import TINY_VIT

from streamcl.config.load import load_config
from streamcl.nn import device
from streamcl.runs.learner import load_learner
from streamcl.runs.open import open_run


def settings(tmp_path, **options):
    return {
        "name": "p",
        "run_dir": str(tmp_path / "run"),
        "source": {"name": "demo_digits"},
        "max_samples": 32,
        "batch": 16,
        "backbone": {"name": "vit_tiny_patch16_224", "weights": "none", "image_size": 32, "args": TINY_VIT},
        "learner": {"name": "ridge", "blocks": [0]},
        "evaluate": {"every_samples": None, "at_stream_end": False},
        "device": "cpu",
        **options,
    }


@pytest.fixture
def timed(monkeypatch):
    """Say what the start-up timing finds from here on."""
    monkeypatch.setattr(device, "multiplies_bf16", lambda _: True)
    return lambda faster: monkeypatch.setattr(device, "is_faster_in_bf16", lambda _: faster)


@pytest.mark.parametrize(("faster", "precision"), [(True, "bf16-mixed"), (False, "32-true")])
def test_auto_is_bf16_only_where_that_was_timed_to_be_faster(timed, faster, precision):
    timed(faster)
    assert device.resolve_compute("cpu").precision == precision


def test_the_timing_asks_once_a_process():
    device.is_faster_in_bf16.cache_clear()
    found = {device.is_faster_in_bf16(torch.device("cpu")) for _ in range(3)}
    assert len(found) == 1
    assert device.is_faster_in_bf16.cache_info().misses == 1


@pytest.mark.parametrize(("first", "precision"), [(True, "bf16-mixed"), (False, "32-true")])
def test_a_run_keeps_the_precision_that_it_began_with(tmp_path, timed, first, precision):
    timed(first)
    with open_run(settings(tmp_path)) as run:
        for number, _ in enumerate(run):
            if number == 15:
                run.stop()
    timed(not first)
    with logged() as said, open_run(settings(tmp_path)) as run:
        assert run.compute.precision == precision
        assert sum(1 for _ in run) == 16
    assert not [line for line in said if "changed" in line]
    assert load_config(tmp_path / "run" / "config.yaml").precision == precision
    learner, _ = load_learner(tmp_path / "run")
    assert learner.compute.precision == precision


def test_a_precision_that_is_asked_for_is_taken_and_told(tmp_path, timed):
    timed(True)
    with open_run(settings(tmp_path, max_samples=16)) as run:
        list(run)
    with logged() as said, open_run(settings(tmp_path, precision="32-true")) as run:
        assert run.compute.precision == "32-true"
    assert [line for line in said if "changed" in line and "precision" in line]


SHAPES = [(1, 1), (2, 2), (3, 4), (5, 8), (8, 8), (9, 16), (16, 16), (17, 32), (64, 64), (200, 64)]


@pytest.mark.parametrize(("batch", "rows"), SHAPES)
def test_frozen_blocks_take_a_batch_at_a_time_or_a_little_more(batch, rows):
    assert device.resolve_compute("cpu", "32-true", batch).rows == rows
