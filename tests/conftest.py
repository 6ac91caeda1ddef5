"""Settings of hypothesis and of threads, and the backbone that most tests share."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from drawn_charts import draw_once
from hypothesis import HealthCheck, settings
from mosquitto_servers import mosquitto  # noqa: F401 - a fixture
from pictures import TINY_VIT
from redis_servers import redis_server  # noqa: F401 - a fixture

from streamcl.storage.hash_secret import HashSecret

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

os.environ["STREAMCL_KEYS"] = tempfile.mkdtemp(prefix="streamcl-keys-")  # never the user's own
atexit.register(shutil.rmtree, os.environ["STREAMCL_KEYS"], ignore_errors=True)
HashSecret().make()  # here, so that no run of a test says that it was made

settings.register_profile(  # a busy machine is no fault of an example
    "untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("untimed")


HOUR = 3600
TESTS = Path(__file__).parent
MEMORY = Path("/dev/shm")
ROOM = 4 << 30
"""Bytes that must be free in a file system in memory: the folders of all tests need a few hundred MB."""


def holds_tests(folder):
    """Whether the folders of tests fit into a file system in memory, where no sync waits for a disk."""
    if not os.access(folder, os.W_OK):
        return False
    state = os.statvfs(folder)
    return state.f_bavail * state.f_frsize > ROOM and not state.f_flag & os.ST_NOEXEC


if holds_tests(MEMORY):
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


def pytest_collection_finish():
    gc.collect()
    gc.freeze()  # what is imported by now stays: no collection during the tests looks at it again


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(2 * HOUR))


@pytest.fixture
def charts_once(monkeypatch):
    """Draws each kind of chart once, and shows it again for the next of its kind."""
    draw_once(monkeypatch)


@pytest.fixture(autouse=True)
def charts_once_but_of_reports(request):
    """Of most tests: they end a run, and look at no chart."""
    if not request.path.is_relative_to(TESTS / "report"):
        request.getfixturevalue("charts_once")


@pytest.fixture(scope="session")
def tiny_backbone():
    from streamcl.nn.build import build_backbone

    return build_backbone("vit_tiny_patch16_224", weights="none", image_size=32, args=TINY_VIT)


@pytest.fixture(scope="session")
def fp32():
    from streamcl.nn.device import resolve_compute

    return resolve_compute("cpu", "32-true")
