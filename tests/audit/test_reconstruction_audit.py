"""Audits of what a state gives back of images: two-sided, beside decoders that never saw the erased ones."""

import json
from contextlib import closing

import pytest
import torch
from audit_runs import configuration
from click.testing import CliRunner

from streamcl.audit import run as audit_module
from streamcl.audit.data import AuditConfig
from streamcl.audit.pictures import picture_sheets
from streamcl.audit.report import text_table
from streamcl.cli import cli
from streamcl.errors import ConfigError, ForgettingError
from streamcl.heads.patch_decoder import HiddenPatches, PatchSums
from streamcl.runs.open import open_run

pytestmark = pytest.mark.long

QUICK = AuditConfig(references=8, permutations=299, max_samples=200)
LEARNER = {"name": "reconstruct", "trace_ridge": 0.001, "decoder": {"cells": 4}}


@pytest.fixture(scope="module")
def forgotten(tmp_path_factory):
    """A run over 200 pictures that was made to forget 30 of them, and then a class."""
    folder = tmp_path_factory.mktemp("pictures")
    with open_run(configuration(folder, LEARNER)) as run:
        list(run)
        run.forget(offsets=(10, 40), id="thirty")
        run.processor.forget()
        run.forget(label="2", id="class")
        run.processor.forget()
    return folder / "run"


@pytest.fixture
def erased(forgotten):
    """The loaded run, and the hidden patches of images that the first request erased."""
    loaded = audit_module.load_run(forgotten)
    with closing(audit_module.build_source(loaded.config)) as source:
        samples = [sample for batch in source for sample in batch.samples][10:40]
    return loaded, loaded.learner.reconstruction.read(samples)


def audited(monkeypatch, folder, loaded, request_id="thirty"):
    monkeypatch.setattr(audit_module, "load_run", lambda *_, **__: loaded)
    return audit_module.audit_run(folder, request=request_id, config=QUICK)


@pytest.mark.parametrize("request_id", ["thirty", "class"])
def test_an_exact_erasure_passes(forgotten, request_id):
    receipt = json.loads((forgotten / "receipts" / f"{request_id}.json").read_text())
    assert (receipt["outcome"], receipt["guarantee"], receipt["method"]) == ("done", "exact", "closed_form")
    report = audit_module.audit_run(forgotten, request=request_id, config=QUICK)
    assert report.verdict == "pass", text_table(report)
    assert report.statistics_error < 1e-5
    measures = {each.measure for each in report.results}
    assert measures >= {"forget accuracy", "forget PSNR", "forget SSIM", "forget FD-ViT", "test PSNR"}


def outcome(report, measure):
    return next(each.outcome for each in report.results if each.measure == measure)


def test_pictures_that_the_decoder_kept_are_found(forgotten, erased, monkeypatch):
    loaded, hidden = erased
    loaded.learner.reconstruction.decoder.merge(PatchSums.of(hidden))
    report = audited(monkeypatch, forgotten, loaded)
    assert report.verdict == "fail"
    assert outcome(report, "forget PSNR") == "too high", text_table(report)
    assert report.statistics_error > 1e-3


def test_a_decoder_that_was_taught_noise_for_them_is_found(forgotten, erased, monkeypatch):
    """A state that is worse at the erased images than one that never saw them shows what was erased."""
    loaded, hidden = erased
    noise = torch.rand(hidden.patches.shape, generator=torch.Generator().manual_seed(0))
    loaded.learner.reconstruction.decoder.merge(
        PatchSums.of(HiddenPatches(hidden.contexts, noise, hidden.places))
    )
    report = audited(monkeypatch, forgotten, loaded)
    assert report.verdict == "fail"
    assert outcome(report, "forget PSNR") == "too low", text_table(report)


def test_pictures_are_shown_with_and_without_having_been_learned(forgotten):
    sheets = {sheet.title: sheet for sheet in picture_sheets(forgotten, request="thirty")}
    assert list(sheets) == ["Erased", "Learned", "Never learned (held out)"]
    assert [sheet.is_seen for sheet in sheets.values()] == [False, True, False]
    assert all(each.gain > 0 for sheet in sheets.values() for each in sheet.pictures)
    for sheet in sheets.values():
        shown = [each.decibels[sheet.is_seen] for each in sheet.pictures]
        assert sheet.given_back == pytest.approx(sum(shown) / len(shown))


def test_the_command_writes_a_page_outside_of_the_run(forgotten, tmp_path):
    page = tmp_path / "page.html"
    done = CliRunner().invoke(cli, ["audit", str(forgotten), "--reconstruct", str(page)])
    assert done.exit_code == 0, done.output
    assert "Erased: " in done.output
    assert page.read_text().count("data:image/png;base64,") > 20
    assert "http" not in page.read_text()
    inside = CliRunner().invoke(cli, ["audit", str(forgotten), "--reconstruct", str(forgotten / "x.html")])
    assert isinstance(inside.exception, ConfigError | SystemExit)
    assert not (forgotten / "x.html").exists()


def test_before_any_erasure_what_was_learned_is_shown(tmp_path):
    with open_run(configuration(tmp_path, LEARNER, count=80)) as run:
        list(run)
    assert [sheet.title for sheet in picture_sheets(run.folder)] == ["Learned", "Never learned (held out)"]
    with pytest.raises(ForgettingError, match="no receipt"):
        picture_sheets(run.folder, request="other")


def test_a_learner_without_a_decoder_is_named(tmp_path):
    with open_run(configuration(tmp_path, "ridge", count=40)) as run:
        list(run)
    with pytest.raises(ForgettingError, match="no decoder of pictures") as caught:
        picture_sheets(run.folder)
    assert "learner: reconstruct" in caught.value.hint
