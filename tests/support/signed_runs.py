"""A run of the fake learner that forgets three times, with signed receipts, and ways to tamper with these."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from forgetting_fakes import Opened

from streamcl.events import ForgetRequest
from streamcl.storage import envelope, hash_chain
from streamcl.storage.signing import PublicKeys, SigningKey
from streamcl.testing import ScriptedSource, record_id

KEY = SigningKey.generate(name="ACME", valid_from=0.0)
KEYS = PublicKeys.of([KEY.public])


def key_source(key):
    """A source of signing keys that has this one for ever."""
    return lambda: nullcontext(key)


def make_run(folder: Path, signing_key=key_source(KEY), source=None, **options) -> Path:  # noqa: B008
    schedule = [
        ForgetRequest(subject="subject-1", offset=8, id="r1", deadline=1500.0),
        ForgetRequest(ids=[record_id(2)], offset=12, id="r2"),
        ForgetRequest(ids=[record_id(9)], offset=16, id="r3"),
    ]
    source = source or ScriptedSource([4] * 6, classes=("zebra", "ibex"))
    with Opened(folder, source, schedule=schedule, signing_key=signing_key, **options) as opened:
        opened.run()
    return folder


def signed_run_fixtures():
    """The fixtures `signed`, a run made once a module, and `run`, a copy of it for each test."""

    @pytest.fixture(scope="module")
    def signed(tmp_path_factory):
        return make_run(tmp_path_factory.mktemp("signed") / "run")

    @pytest.fixture
    def run(signed, tmp_path):
        shutil.copytree(signed, tmp_path / "run")
        return tmp_path / "run"

    return signed, run


def receipts(run: Path) -> list[Path]:
    return [run / "receipts" / f"r{number}.json" for number in (1, 2, 3)]


def drop(run):
    for suffix in (".json", ".dsse"):
        receipts(run)[1].with_suffix(suffix).unlink()


def reorder(run):
    """The first two receipts with each other's place in the chain, and the signatures that they have."""
    first, second = (envelope.read_envelope(path.with_suffix(".dsse")) for path in receipts(run)[:2])
    for path, own, other in ((receipts(run)[0], first, second), (receipts(run)[1], second, first)):
        place = {name: json.loads(other.payload)[name] for name in ("number", "previous")}
        body = {name: value for name, value in json.loads(own.payload).items() if name != "sha256"}
        moved = replace(own, payload=hash_chain.NewLink("receipt", body | place).data)
        path.with_suffix(".dsse").write_bytes(moved.to_bytes())
        path.write_bytes(moved.payload)


def replay(run):
    """The receipt of another run, signed with the same key, in the place of one."""
    other = make_run(run.parent / "other")
    for suffix in (".json", ".dsse"):
        shutil.copy(receipts(other)[1].with_suffix(suffix), receipts(run)[1].with_suffix(suffix))


def fork(run):
    """A second receipt with the same number."""
    for suffix in (".json", ".dsse"):
        shutil.copy(receipts(run)[1].with_suffix(suffix), run / "receipts" / f"r9{suffix}")


TAMPERINGS = (drop, reorder, replay, fork)
