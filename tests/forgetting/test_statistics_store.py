"""Statistics by class or subject on disk: forgotten without samples, in step with the checkpoints."""

import sqlite3
from contextlib import closing

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from pictures import picture
from tiny_learners import statistics_by_class

from streamcl.errors import ForgettingError
from streamcl.events import Batch, ForgetRequest, Sample
from streamcl.forgetting.lineage.lineage import Lineage
from streamcl.forgetting.methods.closed_form import ClosedFormRemoval
from streamcl.forgetting.methods.protocol import Context, RequestScope
from streamcl.forgetting.statistics.block import packed, root, unpacked, without
from streamcl.forgetting.statistics.store import StatisticsStore
from streamcl.heads.ridge import RidgeHead
from streamcl.learners.ridge import RidgeLearner

pytestmark = pytest.mark.long

LABELS = ["ant", "bee", "cat", "dog"]
WIDTH = 3 * 64


def rows(count, width=24, seed=0):
    return np.random.default_rng(seed).normal(1.0, 2.0, (count, width))


@pytest.mark.parametrize("count", [1, 2, 5, 23, 24, 25, 60])
def test_a_root_is_the_sum_in_no_more_numbers_than_its_half(count):
    h = rows(count)
    r = root(h)
    assert np.abs(r.T @ r - h.T @ h).max() <= 1e-12 * np.abs(h.T @ h).max()
    assert r.shape[0] == min(count, 24)
    data = packed(r)
    assert len(data) <= 8 * 24 * 25 // 2
    assert np.array_equal(unpacked(data, *r.shape), np.triu(r))


@pytest.mark.parametrize(("count", "gone"), [(5, 1), (5, 4), (5, 5), (40, 1), (40, 20), (40, 39), (24, 3)])
def test_rows_are_taken_out_of_a_root(count, gone):
    h = rows(count)
    h[-1] = h[0]  # a sample that came twice
    r = without(root(h), h[:gone], count - gone)
    rest = h[gone:]
    assert np.abs(r.T @ r - rest.T @ rest).max() <= 1e-11 * np.abs(h.T @ h).max()
    assert r.shape[0] <= max(0, count - gone)


def test_rows_that_are_not_in_it_are_not_taken_out():
    with pytest.raises(ForgettingError, match="not all of the samples"):
        without(root(rows(5)), rows(1, seed=9), 4)
    with pytest.raises(ForgettingError, match="not all of the samples"):
        without(root(rows(60)), 5 * rows(60)[:1], 59)
    r = without(root(rows(9)), rows(9)[:2], 7)
    with pytest.raises(ForgettingError, match="not all of the samples"):
        without(r, rows(9)[:2], 5)


def sample(number):
    label = LABELS[number % 7 % 4]
    return Sample(
        f"s{number}", picture(label, number), label, subject=f"p{number % 5}" if number % 11 else None
    )


SAMPLES = [sample(number) for number in range(120)]


class Bench:
    """A learner with lineage and kept sums, without a loop around them."""

    def __init__(self, folder, backbone, compute, by, **options):
        head = RidgeHead(WIDTH, trace_ridge=1e-3, refit_fraction=0.0)
        self.learner = RidgeLearner(backbone, compute, head, blocks=(0, 1, 2))
        folder.mkdir(parents=True, exist_ok=True)
        self.lineage = Lineage(folder / "lineage.sqlite")
        self.kept = StatisticsStore(folder / "statistics.sqlite", by, digest=self.lineage.digest, **options)
        self.learner.statistics.on_learned(self.kept.add)
        self.samples = {s.id: s for s in SAMPLES}

    def learn(self, offset, samples):
        batch = Batch(offset, tuple(samples))
        lesson = self.learner.learn(batch)
        self.lineage.record(batch, learned=lesson.learned, segment=0)

    def forget(self, request, *, fetch=False):
        """Erase as the forgetter does; whether samples were asked for."""
        asked = []

        def brought(traces):
            asked.extend(traces)
            return [self.samples[trace.id] for trace in traces]

        rows = self.lineage.select(request)
        kept = self.kept.select(rows.cohorts(self.kept.by))
        scope = RequestScope(
            request,
            learned=rows.learned,
            passed=0,
            forgotten_before=False,
            chunks=lambda: rows.chunks(learned=True, size=16),
        )
        context = Context(self.learner, scope, brought, None if fetch else "there are none", kept)
        if (reason := ClosedFormRemoval().unsupported_reason(request, context)) is not None:
            raise ForgettingError(reason)
        try:
            evidence = ClosedFormRemoval().erase(request, context)
        except ForgettingError:
            kept.rollback()
            raise
        kept.finish(1)
        self.lineage.erase(
            [t.offset for chunk in self.lineage.select(request).chunks(learned=False) for t in chunk]
        )
        return evidence, bool(asked)

    def close(self):
        self.lineage.close()
        self.kept.file.close()


def request(kind, name):
    match kind:
        case "class":
            return ForgetRequest(id="r", label=name)
        case "subject":
            return ForgetRequest(id="r", subject=name)
    return ForgetRequest(id="r", ids=tuple(name))


def check_same(one, other):
    assert sorted(one.classes) == sorted(other.classes)
    for mine, theirs in zip(statistics_by_class(one), statistics_by_class(other), strict=True):
        assert float((mine - theirs).abs().max() / theirs.abs().max()) <= 1e-9
    asked = SAMPLES[:40]
    assert [g.label for g in one.predict(asked)] == [g.label for g in other.predict(asked)]


def check_interleaving(tmp_path_factory, tiny_backbone, fp32, data):
    by = data.draw(st.sampled_from(["class", "subject"]), label="by")
    bench = Bench(tmp_path_factory.mktemp("kept"), tiny_backbone, fp32, by)
    alive, gone, start = [], set(), 0
    while start < len(SAMPLES):
        size = data.draw(st.integers(1, 33), label="batch")
        batch = [s for s in SAMPLES[start : start + size] if s.label not in gone and s.subject not in gone]
        bench.learn(start, batch)
        alive += batch
        start += size
        if data.draw(st.booleans(), label="commit"):
            bench.kept.flush(start)
        kind = data.draw(st.sampled_from(["none", "samples", "subject", "class"]), label="request")
        if kind == "none" or not alive:
            continue
        one = data.draw(st.sampled_from(alive), label="of")
        if kind == "samples" or (kind == "class" and len({s.label for s in alive}) == 1):
            kind, name = "samples", [s.id for s in data.draw(st.lists(st.sampled_from(alive), min_size=1))]
            chosen = {s.id for s in alive} & set(name)
        else:
            name = one.label if kind == "class" else one.subject
            if name is None:
                continue
            chosen = {s.id for s in alive if name in (s.label, s.subject)}
            gone.add(name)
        _, asked = bench.forget(request(kind, name), fetch=kind != by)
        assert not asked or kind != by
        alive = [s for s in alive if s.id not in chosen]
    fresh = RidgeLearner(
        tiny_backbone, fp32, RidgeHead(WIDTH, trace_ridge=1e-3, refit_fraction=0.0), blocks=(0, 1, 2)
    )
    for name in sorted(set(bench.learner.classes) - {s.label for s in alive}):
        bench.learner.drop_class(name)
    if alive:
        fresh.learn(Batch(0, tuple(alive)))
        check_same(bench.learner, fresh)
    bench.kept.flush(start)
    for name in sorted({s.label if by == "class" else s.subject for s in alive} - {None}):
        count = sum(name in (s.label, s.subject) for s in alive)
        assert bench.kept.file.count(bench.lineage.digest(by, name)) == {0: count}
    bench.close()


@pytest.mark.parametrize("examples", [3, pytest.param(25, marks=pytest.mark.slow)])
def test_any_interleaving_equals_the_stream_without_the_forgotten(
    tmp_path_factory, tiny_backbone, fp32, examples
):
    """Requests for cohorts need no samples; others bring them back, and what is kept stays right."""

    @settings(max_examples=examples, phases=(Phase.explicit, Phase.generate), derandomize=True)
    @given(data=st.data())
    def holds(data):
        check_interleaving(tmp_path_factory, tiny_backbone, fp32, data)

    holds()


def test_a_second_deletion_is_refused_and_changes_nothing(tmp_path, tiny_backbone, fp32):
    bench = Bench(tmp_path, tiny_backbone, fp32, "class")
    bench.learn(0, SAMPLES)
    scope = bench.kept.select(bench.lineage.select(request("class", "cat")).cohorts("class"))
    sums = bench.learner.statistics.from_parts([list(scope.parts(0, bench.learner.classes))])
    bench.learner.statistics.subtract(sums)
    before = statistics_by_class(bench.learner)
    with pytest.raises(ForgettingError, match="more samples of a class"):
        bench.learner.statistics.subtract(sums)
    assert all(bool((a == b).all()) for a, b in zip(before, statistics_by_class(bench.learner), strict=True))


def test_a_class_that_is_only_kept_in_part_needs_its_samples(tmp_path, tiny_backbone, fp32):
    bench = Bench(tmp_path, tiny_backbone, fp32, "class")
    bench.learn(0, SAMPLES[:60])
    bench.kept.select({bench.lineage.digest("class", "cat"): (1, 2)}).drop()
    bench.kept.file.accept()
    bench.learn(60, SAMPLES[60:])
    with pytest.raises(ForgettingError, match="there are none"):
        bench.forget(request("class", "cat"))
    assert bench.forget(request("class", "cat"), fetch=True)[1]
    assert bench.forget(request("class", "dog"))[1] is False


def test_samples_without_a_subject_are_not_kept_by_subject(tmp_path, tiny_backbone, fp32):
    bench = Bench(tmp_path, tiny_backbone, fp32, "subject")
    bench.learn(0, SAMPLES)
    chosen = [s.id for s in SAMPLES if s.subject is None or s.subject == "p1"]
    with pytest.raises(ForgettingError, match="there are none"):
        bench.forget(request("samples", chosen))
    chosen = [s.id for s in SAMPLES if s.subject in {"p1", "p2"}]  # two whole subjects
    assert bench.forget(request("samples", chosen))[1] is False


def content(path):
    """What a checkpoint of the moment would find."""
    query = "SELECT cohort, head, samples, root FROM blocks WHERE died IS NULL ORDER BY head, id"
    with closing(sqlite3.connect(path)) as file:
        return file.execute(query).fetchall()


def test_what_is_kept_does_not_depend_on_where_commits_fell(tmp_path):
    digest = lambda kind, name: f"{kind}{name}".encode().ljust(16)  # noqa: E731
    samples = [sample(number) for number in range(80)]
    found = []
    for name, commits in (("a", ()), ("b", (1, 2, 5)), ("c", range(9))):
        kept = StatisticsStore(tmp_path / name, "class", digest=digest)
        for number in range(10):
            chosen = samples[8 * number : 8 * number + 8]
            kept.add(chosen, [rows(8, seed=number), None if number < 3 else rows(8, 9, seed=number)])
            if number in commits:
                kept.flush(8 * number + 8)
        kept.flush(80)
        cohorts = sorted({row[0] for row in content(tmp_path / name)})
        found.append([[list(row) for row in content(tmp_path / name) if row[0] == each] for each in cohorts])
        assert {len(each) for each in found[-1]} <= set(range(13))
        assert kept.state_dict() == {"moment": 80 << 8}
        kept.file.close()
    assert found[0] == found[1] == found[2]


def test_it_goes_back_to_the_moment_of_any_checkpoint_that_is_kept(tmp_path):
    digest = lambda kind, name: f"{kind}{name}".encode().ljust(16)  # noqa: E731
    kept = StatisticsStore(tmp_path / "s", "class", digest=digest, keep=2)
    kept.load_state_dict({"moment": 0})
    seen = []
    for number in range(6):
        kept.add(SAMPLES[8 * number : 8 * number + 8], [rows(8, seed=number)])
        kept.flush(8 * number + 8)
        seen.append((kept.state_dict(), content(tmp_path / "s")))
    kept.add(SAMPLES[:8], [rows(8)])
    kept.select({digest("class", "cat"): (1, 1)}).drop()
    for state, expected in (seen[5], seen[4], seen[3]):
        kept.load_state_dict(state)
        assert content(tmp_path / "s") == expected
    with pytest.raises(ForgettingError, match="does not know the checkpoint"):
        kept.load_state_dict(seen[0][0])
    kept.file.close()


def test_a_damaged_block_is_not_subtracted(tmp_path):
    digest = lambda kind, name: f"{kind}{name}".encode().ljust(16)  # noqa: E731
    kept = StatisticsStore(tmp_path / "s", "class", digest=digest)
    kept.add(SAMPLES[:8], [rows(8)])
    kept.flush(8)
    with closing(sqlite3.connect(tmp_path / "s")) as file, file:
        file.execute("UPDATE blocks SET root = zeroblob(LENGTH(root)) WHERE id = 1")
    with pytest.raises(ForgettingError, match="not what was written"):
        kept.file.check()
    kept.file.close()
