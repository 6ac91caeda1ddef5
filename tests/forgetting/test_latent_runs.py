"""Stored latents of a run on disk: shared by checkpoints, mapped after a resume, erased from every file."""

import errno
import gc
import json
import mmap
import os
from pathlib import Path

import pytest
from tiny_runs import call, configuration

from streamcl.errors import CheckpointError
from streamcl.runs.open import open_run
from streamcl.storage.plain_state import state_hash

LEARNER = {
    "name": "ridge_lora",
    "ridge": {"blocks": [1, 2]},
    "lora": {"first_block": 1},
    "latents": {"budget": "256kB", "first_samples": 64},
}
ERASED = 40


@pytest.fixture
def small_segments(monkeypatch):
    """Segments of some ten samples, of which each is a file of its own in a checkpoint."""
    monkeypatch.setattr("streamcl.learners.latent_factory.STORED_SEGMENT_BYTES", 4096)
    monkeypatch.setattr("streamcl.storage.array_files.SHARED_BYTES", 512)


def options(folder, **more):
    checkpoint = {"every_samples": 32}
    return configuration(folder, learner=LEARNER, batch=8, checkpoint=checkpoint, **more)


def codes_of(run, offset):
    """The bytes of a stored sample's tokens."""
    for group in run.learner.adapted.store.groups:
        for row in range(len(group)):
            if group.offsets[row] == offset:
                return group.tokens[[row]].codes.tobytes()
    return None


def files_with(folder, content):
    """The files of a folder, and the mapped ones of this process, in which some bytes occur."""
    found = [path for path in folder.rglob("*") if path.is_file() and content in path.read_bytes()]
    gc.collect()  # what is in no use any more is unmapped now, and not between its line here and its reading
    for line in _maps_below(folder):
        try:
            mapped = _mapped(line)
        except OSError:
            assert line not in _maps_below(folder), "a file was cut off under its map"
            continue
        if content in mapped:
            found.append(Path(line.split(maxsplit=5)[5]))
    return found


def _maps_below(folder):
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]


def _mapped(line):
    begin, end = (int(each, 16) for each in line.split()[0].split("-"))
    with Path("/proc/self/mem").open("rb", buffering=0) as memory:
        memory.seek(begin)
        return memory.read(end - begin)


def test_a_file_that_is_unmapped_meanwhile_is_no_longer_among_those_mapped(tmp_path, monkeypatch):
    path = tmp_path / "array-0.bin"
    path.write_bytes(b"token" * 1000)
    with path.open("rb") as file:
        held = [mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)]
    path.unlink()
    assert len(files_with(tmp_path, b"token")) == 1

    def unmap_then_read(line, read=_mapped):
        held.clear()
        return read(line)

    monkeypatch.setitem(globals(), "_mapped", unmap_then_read)
    assert files_with(tmp_path, b"token") == []


def test_a_file_that_is_cut_off_under_its_map_is_no_silence(tmp_path):
    path = tmp_path / "array-0.bin"
    path.write_bytes(b"token" * 1000)
    with path.open("rb") as file:
        held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    os.truncate(path, 0)
    with pytest.raises(AssertionError, match="cut off under its map"):
        files_with(tmp_path, b"token")
    held.close()


def arrays(folder):
    return sorted(folder.rglob("array-*.bin"))


@pytest.mark.usefixtures("small_segments")
def test_tokens_of_an_erased_sample_are_in_no_file_and_in_no_map(tmp_path):
    with open_run(options(tmp_path)) as run:
        (name,) = [each.id for each in run if each.offset == ERASED]
        run.processor.commit()
        content = codes_of(run, ERASED)
        found = files_with(tmp_path, content)
        assert {path.suffix for path in found} >= {".bin"}
        assert any("(deleted)" in path.name for path in found)
        kept = {path.name for path in arrays(tmp_path)}
        run.forget(ids=[name])
        run.processor.forget()
        assert codes_of(run, ERASED) is None
        assert files_with(tmp_path, content[:16]) == []
        assert {path.name for path in arrays(tmp_path)} & kept  # the segments of others
        run.finish()
    assert files_with(tmp_path, content[:16]) == []
    assert call("verify", tmp_path / "run")[0] == 0


@pytest.mark.usefixtures("small_segments")
def test_a_resumed_run_maps_the_files_of_its_checkpoint_and_ends_alike(tmp_path):
    with open_run(options(tmp_path / "whole")) as run:
        list(run)
        expected = state_hash(run.learner.state_dict())
    with open_run(options(tmp_path / "parts")) as run:
        next(each for each in run if each.offset == 100)
    with open_run(options(tmp_path / "parts")) as run:
        segments = run.learner.adapted.store.state_dict()["segments"]
        mapped = [part for part in segments if not part["codes"].flags.writeable]
        assert len(mapped) >= 3
        assert str(tmp_path / "parts" / "run" / "checkpoints") in Path("/proc/self/maps").read_text()
        list(run)
        assert state_hash(run.learner.state_dict()) == expected


@pytest.mark.usefixtures("small_segments")
def test_segments_change_nothing_that_is_learned(tmp_path, monkeypatch):
    hashes = []
    for size in (4096, 1 << 20):
        monkeypatch.setattr("streamcl.learners.latent_factory.STORED_SEGMENT_BYTES", size)
        with open_run(options(tmp_path / str(size))) as run:
            predictions = [(each.id, each.predicted, each.confidence) for each in run]
            state = run.learner.state_dict()
        del state["adapted"]["store"]["segments"]
        hashes.append((state_hash(state), predictions))
    assert hashes[0] == hashes[1]


@pytest.mark.faults
@pytest.mark.usefixtures("small_segments")
def test_a_disk_without_room_ends_the_run_and_a_resume_ends_alike(tmp_path, monkeypatch):
    with open_run(options(tmp_path / "whole")) as run:
        list(run)
        expected = state_hash(run.learner.state_dict())
    with open_run(options(tmp_path / "full")) as run, monkeypatch.context() as patch:
        next(each for each in run if each.offset == 50)
        patch.setattr("tempfile.TemporaryFile", full)
        with pytest.raises(CheckpointError, match=r"could not be written to .*: No space left") as caught:
            list(run)
        assert caught.value.exit_code == 4
    with open_run(options(tmp_path / "full")) as run:
        list(run)
        assert state_hash(run.learner.state_dict()) == expected


def full(**_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_figures_at_the_end_are_of_the_adapters_that_the_end_has_trained(tmp_path):
    latents = {**LEARNER["latents"], "learning_rate": 0.1, "share": 0.9}  # so that training changes answers
    more = {"source": {"name": "demo_digits", "args": {"length": 40}}, "evaluate": {"every_samples": None}}
    learner = {**LEARNER, "latents": latents}
    with open_run(configuration(tmp_path, learner, batch=8, max_samples=None, **more)) as run:
        answers = [each.predicted for each in run]
        held_out = [sample for part in run.source.info.holdout for sample in part.samples]
        predicted = run.learner.predict(held_out)
        right = [answer.label == sample.label for answer, sample in zip(predicted, held_out, strict=True)]
        assert len(answers) == run.source.info.holdout[-1].end_offset
        assert [each["reason"] for each in events(tmp_path, "training")] == ["the stream ended"]
        assert run.summary()["holdout"]["A_Last"] == pytest.approx(sum(right) / len(right), abs=1e-4)


def events(folder, kind):
    lines = (folder / "run" / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == kind]
