"""Features of probe images tell a run, before an erasure begins, that other features were learned."""

import json
import logging

import numpy as np
import pytest
import torch.nn.functional as F
from click.testing import CliRunner
from tiny_runs import configuration

from streamcl.cli import cli
from streamcl.forgetting.ledger.ledger import Ledger
from streamcl.forgetting.lineage.feature_probe import PROBES, FeatureProbe, ProbeHistory
from streamcl.forgetting.lineage.lineage_row import LineageRow
from streamcl.nn.probe_features import probe_features, probe_images
from streamcl.runs import assemble as assembly
from streamcl.runs.open import open_run

FEATURES = np.random.default_rng(0).normal(size=(3, 40))
THEN = {"torch": "2.0", "timm": "1.0"}


def rows(*offsets):
    return [[LineageRow(offset, f"s{offset}", "a", True, 0, b"") for offset in offsets]]


def probe(share=0.0, **versions):
    changed = FEATURES * (1 + share * np.random.default_rng(1).normal(size=FEATURES.shape))
    return FeatureProbe.of(changed, THEN | versions)


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path / "ledger.sqlite") as opened:
        yield opened


class TestHistory:
    def test_the_same_features_are_no_change_whatever_the_versions(self, ledger):
        ProbeHistory(ledger, probe()).begin(0)
        later = ProbeHistory(ledger, probe(1e-7, torch="2.1"))
        later.begin(40)
        assert later.difference_from_learned(rows(3, 50)) is None
        assert len(ledger.recall(PROBES)) == 1

    def test_records_of_before_a_change_are_named_with_the_versions_and_later_ones_are_not(
        self, ledger, caplog
    ):
        ProbeHistory(ledger, probe()).begin(0)
        later = ProbeHistory(ledger, probe(1e-3, torch="2.1"))
        later.begin(40)
        assert "torch 2.0, now 2.1" in caplog.text
        reason = later.difference_from_learned(rows(39, 41))
        assert "torch 2.0, now 2.1" in reason
        assert "timm" not in reason
        assert later.difference_from_learned(rows(40, 41)) is None

    def test_who_goes_back_to_the_features_of_then_may_erase_what_was_learned_with_them(self, ledger):
        for share, offset in ((0.0, 0), (1e-3, 40), (0.0, 60)):
            last = ProbeHistory(ledger, probe(share))
            last.begin(offset)
        assert last.difference_from_learned(rows(39, 61)) is None
        assert "with the same versions" in last.difference_from_learned(rows(45))

    def test_what_a_crash_has_undone_is_no_era(self, ledger):
        ProbeHistory(ledger, probe()).begin(0)
        ProbeHistory(ledger, probe(1e-3)).begin(40)
        again = ProbeHistory(ledger, probe())
        again.begin(40)
        assert again.difference_from_learned(rows(0, 39, 41)) is None
        assert len(ledger.recall(PROBES)) == 1

    def test_another_width_and_nan_are_changes(self, ledger):
        assert not probe().is_same(FeatureProbe.of(FEATURES[:2], THEN))
        assert not probe().is_same(FeatureProbe.of(FEATURES * np.nan, THEN))

    def test_a_run_that_noted_none_knows_of_no_change(self, ledger):
        first = ProbeHistory(ledger, probe())
        first.begin(70)  # what was learned before is bound row by row only
        assert first.difference_from_learned(rows(3)) is None
        assert ProbeHistory(ledger, None).difference_from_learned(rows(3)) is None


def test_probe_images_are_the_same_in_every_process_and_their_features_too(tiny_backbone):
    one, other = probe_images(), probe_images()
    assert [image.shape[:2] for image in one] == [(48, 64), (97, 61), (224, 224)]
    assert all((a == b).all() for a, b in zip(one, other, strict=True))
    assert [int(image.sum()) for image in one] == [1152256, 2224344, 18984998]
    assert (probe_features(tiny_backbone) == probe_features(tiny_backbone)).all()


# -- runs: another resize, as an upgrade of a library would bring ------------------------------------


def resize_otherwise(monkeypatch):
    """Have images resized bilinearly from here on."""
    real = F.interpolate

    def bilinear(given, size, mode, **options):
        return real(given, size, mode="bilinear", **options)

    monkeypatch.setattr(F, "interpolate", bilinear)


@pytest.fixture
def learned(tmp_path):
    config = configuration(tmp_path, max_samples=96)
    with open_run(config) as run:
        for prediction in run:
            if prediction.offset == 79:
                break
    return config


def receipt(folder, name):
    return json.loads((folder / "run" / "receipts" / f"{name}.json").read_text())


def test_with_another_resize_nothing_learned_before_is_erased_as_exact_and_later_records_are(
    tmp_path, learned, monkeypatch, caplog
):
    resize_otherwise(monkeypatch)
    plan = CliRunner().invoke(cli, ["forget", str(tmp_path / "run"), "--offsets", "10:12", "--plan"])
    assert plan.exit_code != 0
    assert "features of probe images differ" in str(plan.exception or plan.output)
    with caplog.at_level(logging.WARNING), open_run(learned) as run:
        assert "features of probe images differ" in caplog.text
        at = run.processor.progress.offset
        list(run)
        before = run.learner.head.statistics.total
        run.forget(offsets=(10, 12), id="old")
        run.forget(offsets=(at, at + 3), id="new")
        run.processor.forget()
        assert run.learner.head.statistics.total == before - 3
    assert receipt(tmp_path, "old")["outcome"] == "refused"
    assert "features of probe images differ" in receipt(tmp_path, "old")["reason"]
    assert (receipt(tmp_path, "new")["outcome"], receipt(tmp_path, "new")["guarantee"]) == ("done", "exact")


def test_other_versions_with_the_same_features_change_nothing(tmp_path, learned, monkeypatch, caplog):
    monkeypatch.setattr(assembly, "library_versions", lambda: {"torch": "9.9"})
    with open_run(learned) as run:
        run.forget(offsets=(10, 12), id="old")
        list(run)
    assert receipt(tmp_path, "old")["guarantee"] == "exact"
    assert "probe images" not in caplog.text


def test_stored_sums_need_no_features(tmp_path, monkeypatch):
    config = configuration(tmp_path, max_samples=96, forgetting={"keep_statistics": "per_class"})
    with open_run(config) as run:
        list(run)
    resize_otherwise(monkeypatch)
    with open_run(config) as run:
        run.forget(label=run.learner.classes[0], id="old")
        run.processor.forget()
    assert receipt(tmp_path, "old")["guarantee"] == "exact"
