"""What a request selects, and what becomes of it when it comes again, in each of the four ways to ask."""

import json
from contextlib import closing

import pytest
from click.testing import CliRunner
from forgetting_fakes import Opened
from tiny_runs import configuration

from streamcl.cli import cli
from streamcl.errors import ConfigError
from streamcl.events import Batch, ForgetRequest, Sample
from streamcl.factory.forgetting import build_schedule
from streamcl.forgetting.ledger.ledger import LEDGER, Ledger
from streamcl.forgetting.lineage.lineage import LINEAGE, Lineage
from streamcl.storage.sqlite import SqliteFile
from streamcl.testing import ScriptedSource, record_id


def batches():
    """Forty records, domains in turn, each of a subject of three, and the same records once more."""
    plain = ScriptedSource([4] * 10)
    return [dressed(batch) for batch in plain]


def dressed(batch):
    names = ("north", "south")
    samples = (
        Sample(s.id, s.image, s.label, s.subject, names[int(s.id) // 4 % 2], s.privacy) for s in batch.samples
    )
    return Batch(batch.offset, tuple(samples))


def consumed(folder, request):
    with Opened(folder, ScriptedSource([*batches(), request])) as run:
        run.run()
        return {int(name) for name in run.learner.consumed}


PREDICATES = [
    ({"offsets": (3, 17)}, lambda k: 3 <= k < 17),
    ({"domain": "south"}, lambda k: k // 4 % 2 == 1),
    ({"id_pattern": "00002?"}, lambda k: 20 <= k < 30),
    ({"id_pattern": "*7"}, lambda k: k % 10 == 7),
    ({"id_pattern": "[0]*"}, lambda k: False),
    ({"ids": [record_id(k) for k in (4, 9, 30)], "subject": "subject-0"}, lambda k: k in {9, 30}),
    ({"domain": "north", "offsets": (0, 20), "subject": "subject-1"},
     lambda k: k < 20 and k // 4 % 2 == 0 and k % 3 == 1),
    ({"id_pattern": "00001*", "domain": "north", "offsets": (0, 18)}, lambda k: k in {10, 11, 16, 17}),
]  # fmt: skip


@pytest.mark.parametrize(("what", "chosen"), PREDICATES)
def test_a_predicate_selects_what_all_of_it_says(tmp_path, what, chosen):
    left = consumed(tmp_path, ForgetRequest(id="r1", **what))
    assert left == {k for k in range(40) if not chosen(k)}


def as_event(folder, what):
    """The request as a source would yield it."""
    chosen = {k: v for k, v in what.items() if k in {"id_pattern", "domain", "offsets"}}
    return ForgetRequest(id="r1", **chosen, on_return=what.get("on_return", "drop"))


def by_event(folder, what):
    return ScriptedSource([*batches(), as_event(folder, what), 4, *again()]), []


def by_yaml(folder, what):
    options = {name: list(v) if isinstance(v, tuple) else v for name, v in what.items()}
    config = configuration(folder, forgetting={"requests": [{"offset": 40, **options}]})
    return ScriptedSource([*batches(), 4, *again()]), build_schedule(config)


def again():
    return [Batch(0, dressed(batch).samples) for batch in batches()]


def by_command(folder, what):
    options = [[f"--{n.replace('_', '-')}", ":".join(map(str, v)) if n == "offsets" else v]
               for n, v in what.items()]  # fmt: skip
    (folder / "run").mkdir()
    (folder / "run" / "config.yaml").write_text("{}")
    arguments = ["forget", str(folder / "run"), *(each for pair in options for each in pair)]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    with Ledger(folder / "run" / LEDGER) as ledger:
        (entry,) = ledger.entries()
        body = entry.body
    (folder / "run" / LEDGER).unlink()
    (folder / "run" / "config.yaml").unlink()

    return ScriptedSource([*batches(), ForgetRequest.model_validate(body), 4, *again()]), []


def by_python(folder, what):
    return ScriptedSource([*batches(), 4, *again()]), [ForgetRequest(**what, offset=40)]


WAYS = [by_event, by_yaml, by_command, by_python]


@pytest.mark.parametrize("on_return", ["drop", "learn"])
@pytest.mark.parametrize("way", WAYS)
def test_each_way_of_asking_selects_alike_and_says_whether_it_may_be_learned_again(tmp_path, way, on_return):
    what = {"id_pattern": "00001?", "domain": "north", "offsets": (0, 18), "on_return": on_return}
    source, schedule = way(tmp_path, what)
    gone = [record_id(k) for k in (10, 11, 16, 17)]
    with Opened(tmp_path / "run", source, schedule=schedule) as run:
        run.run()
        times = {name: run.learner.consumed.count(name) for name in gone}
        assert set(times.values()) == ({1} if on_return == "learn" else {0})
        assert run.learner.consumed.count(record_id(12)) == 2
        buried = [run.ledger.is_tombstoned("sample", name) for name in gone]
        assert buried == [on_return == "drop"] * 4
    (receipt,) = (tmp_path / "run" / "receipts").glob("*.json")
    content = json.loads(receipt.read_text())
    assert (content["on_return"], content["scope"]["learned"]) == (on_return, 4)


def test_whether_it_may_be_learned_again_is_in_the_ledger(tmp_path):
    for on_return in ("drop", "learn"):
        asked = ForgetRequest(id=f"r-{on_return}", subject="ann", on_return=on_return)
        assert asked.model_dump(mode="json")["on_return"] == on_return
        with Ledger(tmp_path / LEDGER) as ledger:
            ledger.submit(asked.model_dump(mode="json"))
    with Ledger(tmp_path / LEDGER) as ledger:
        assert [entry.body["on_return"] for entry in ledger.pending()] == ["drop", "learn"]


@pytest.mark.parametrize(
    ("wrong", "place"),
    [
        ({"id_pattern": ""}, "id_pattern"),
        ({"id_pattern": "a*", "class": "b"}, "excludes every other selection"),
        ({"offsets": [5]}, "offsets"),
        ({"on_return": "maybe", "class": "b"}, "on_return"),
    ],
)
def test_a_wrong_predicate_in_the_configuration_is_refused_with_its_place(tmp_path, wrong, place):
    with pytest.raises(ConfigError) as refused:
        configuration(tmp_path, forgetting={"requests": [{"offset": 3, **wrong}]})
    assert place in str(refused.value) + str(refused.value.problems)


def test_a_span_that_ends_before_it_begins_is_refused(tmp_path):
    with pytest.raises(ConfigError) as refused:
        configuration(tmp_path, forgetting={"requests": [{"offset": 3, "offsets": [9, 4]}]})
    assert "'offsets' must be two offsets" in str(refused.value) + str(refused.value.problems)


@pytest.mark.parametrize("terms", [{"subject": "subject-1"}, {"ids": (record_id(3),)}, {"offsets": (0, 4)}])
def test_what_a_selection_asks_for_never_reads_all_samples(tmp_path, monkeypatch, terms):
    """The planner of SQLite knows nothing of the size of a table in memory."""
    query, plans = SqliteFile.query, []

    def explained(self, sql, *values):
        if sql.startswith("SELECT"):
            plans.extend(step for *_, step in query(self, f"EXPLAIN QUERY PLAN {sql}", *values))
        return query(self, sql, *values)

    with closing(Lineage(tmp_path / LINEAGE)) as lineage:
        for batch in batches():
            lineage.record(batch, learned=batch.labelled_offsets, segment=0)
        monkeypatch.setattr(SqliteFile, "query", explained)
        with closing(lineage.select(ForgetRequest(**terms))) as selection:
            assert selection.emptied
            assert selection.cohorts("class")
            assert list(selection.chunks(learned=True))
    assert any("samples" in step for step in plans)
    assert not [step for step in plans if step.startswith("SCAN samples")]
