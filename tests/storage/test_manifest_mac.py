"""Without the key nobody writes or changes a checkpoint unnoticed."""

import hashlib
import json
import logging
import shutil

import pytest
from safetensors import numpy as safetensors
from tiny_runs import call, configuration

from streamcl.errors import CheckpointError, ConfigError
from streamcl.runs.doctor import check_run
from streamcl.runs.learner import load_learner
from streamcl.runs.open import open_run
from streamcl.storage.canonical_json import canonical_json, sha256_of_json
from streamcl.storage.checkpoint import Checkpoints, list_checkpoints
from streamcl.storage.checkpoint_format import members_of
from streamcl.storage.hash_secret import HashSecret
from streamcl.storage.manifest_mac import ManifestMac


def saved(folder, mac=None, step=1):
    store = Checkpoints(folder, fingerprint={}, mac=mac or ManifestMac())
    return store.save(8 * step, step, {"step": step}).path


def rewrite(path, **changes):
    """Change fields of the manifest, and make it consistent in itself."""
    manifest = {**json.loads((path / "manifest.json").read_bytes()), **changes}
    for name in ("sha256", *(name for name, value in changes.items() if value is None)):
        del manifest[name]
    manifest["sha256"] = sha256_of_json(manifest)
    (path / "manifest.json").write_bytes(canonical_json(manifest))


def latest(folder, **options):
    return Checkpoints(folder, fingerprint={}, mac=ManifestMac(**options)).latest()


def test_an_authenticated_checkpoint_is_read_and_the_mac_changes_nothing_else(tmp_path):
    saved(tmp_path)
    assert latest(tmp_path).state == {"step": 1}
    assert Checkpoints(tmp_path, fingerprint={}).latest().state == {"step": 1}
    authenticated = json.loads(members_of(8, 1, {"step": 1}, {}, ManifestMac())["manifest.json"])
    plain = json.loads(members_of(8, 1, {"step": 1}, {})["manifest.json"])
    assert authenticated.keys() - plain.keys() == {"mac"}


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"offset": 9}, "its MAC is wrong"),
        ({"fingerprint": {"config": "x"}}, "its MAC is wrong"),
        ({"mac": None}, "it has no MAC"),
        ({"mac": {}}, "its MAC is of another secret"),
        ({"mac": "x"}, "it has no MAC"),
    ],
)
def test_a_changed_manifest_is_refused_although_it_is_consistent(tmp_path, changes, fault, caplog):
    rewrite(saved(tmp_path), **changes)
    with caplog.at_level(logging.WARNING), pytest.raises(CheckpointError):
        latest(tmp_path)
    assert fault in caplog.text


def test_the_one_before_a_changed_one_is_used(tmp_path):
    saved(tmp_path)
    rewrite(saved(tmp_path, step=2), offset=99)
    assert latest(tmp_path).step == 1


def test_a_checkpoint_of_another_secret_is_refused_or_taken_with_a_warning(tmp_path, caplog):
    other = HashSecret(tmp_path / "other")
    other.make()
    saved(tmp_path / "run", ManifestMac(other))
    with pytest.raises(CheckpointError):
        latest(tmp_path / "run")
    with caplog.at_level(logging.WARNING):
        assert latest(tmp_path / "run", accept_foreign=True).step == 1
    assert "cannot be told" in caplog.text


def test_without_a_secret_nothing_is_authenticated_and_a_copy_is_taken_with_a_warning(tmp_path, caplog):
    saved(tmp_path / "run")
    none = HashSecret(tmp_path / "nowhere")
    with pytest.raises(ConfigError):
        latest(tmp_path / "run", secret=none)
    with caplog.at_level(logging.WARNING):
        assert latest(tmp_path / "run", secret=none, accept_foreign=True).step == 1


@pytest.fixture
def run(tmp_path):
    with open_run(configuration(tmp_path, max_samples=64)) as opened:
        list(opened)
    return tmp_path / "run"


def poison(run):
    """Change the learner in the newest checkpoint, with a new manifest, as whoever holds the folder can."""
    path = list_checkpoints(run / "checkpoints")[-1]
    arrays = safetensors.load((path / "arrays.safetensors").read_bytes())
    data = safetensors.save({name: array * 0 + 1 for name, array in arrays.items()})
    (path / "arrays.safetensors").write_bytes(data)
    members = json.loads((path / "manifest.json").read_bytes())["members"]
    members["arrays.safetensors"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    rewrite(path, members=members)
    for older in list_checkpoints(run / "checkpoints")[:-1]:
        shutil.rmtree(older)


def test_a_changed_model_is_used_by_nothing(run, tmp_path):
    poison(run)
    with pytest.raises(CheckpointError, match="none of the 1 checkpoints"):
        open_run(configuration(tmp_path, max_samples=96))
    with pytest.raises(CheckpointError):
        load_learner(run)
    assert any("MAC is wrong" in each.text for each in check_run(run))


def test_verify_notices_a_changed_model_after_an_erasure(run):
    assert call("forget", run, "--class", "4", "--execute")[0] == 0
    (receipt,) = (run / "receipts").glob("*.json")
    assert call("verify", receipt)[0] == 0
    poison(run)
    assert call("verify", receipt)[0] == 6
