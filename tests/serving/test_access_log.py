"""The log of accesses: one line a kind and minute with its count, ids of requests, a bound, one reader."""

import json

from streamcl.serving.access.access_log import ACCESS_LOG, EARLIER_ACCESS_LOG, AccessEntry, AccessLog

PREDICT = AccessEntry("camera", "reader", "192.0.2.7", "POST /v1/predict", 200)
FORGET = AccessEntry("dpo", "officer", "192.0.2.8", "POST /v1/forget", 202)


def lines(path):
    return [json.loads(each) for each in path.read_text().splitlines()]


def test_requests_of_a_kind_are_counted_by_the_minute(tmp_path):
    now = [1000.0]
    log = AccessLog(tmp_path / ACCESS_LOG, clock=lambda: now[0])
    for _ in range(5):
        log.note(PREDICT)
    log.note(FORGET, "request-1")
    log.note(FORGET, "request-2")
    now[0] += 61
    log.note(PREDICT)
    found = lines(tmp_path / ACCESS_LOG)
    assert [(each["route"], each["count"]) for each in found] == [
        ("POST /v1/predict", 1),
        ("POST /v1/forget", 1),
        ("POST /v1/forget", 1),
        ("POST /v1/predict", 4),
        ("POST /v1/predict", 1),
    ]
    assert [each.get("request") for each in found[:3]] == [None, "request-1", "request-2"]
    assert found[1] == {
        "time": 1000.0, "token": "dpo", "role": "officer", "address": "192.0.2.8",
        "route": "POST /v1/forget", "status": 202, "count": 1, "request": "request-1",
    }  # fmt: skip


def test_counts_are_written_at_the_end(tmp_path):
    log = AccessLog(tmp_path / ACCESS_LOG)
    for _ in range(3):
        log.note(PREDICT)
    log.flush()
    assert sum(each["count"] for each in lines(tmp_path / ACCESS_LOG)) == 3


def test_it_is_for_its_owner_and_has_a_bound(tmp_path):
    log = AccessLog(tmp_path / ACCESS_LOG, max_bytes=1000)
    for number in range(100):
        log.note(FORGET, f"request-{number}")
    log.note(PREDICT)
    paths = sorted(tmp_path.iterdir())
    assert [path.name for path in paths] == [EARLIER_ACCESS_LOG, ACCESS_LOG]
    assert all(path.stat().st_size < 1300 for path in paths)
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in paths)
    assert lines(tmp_path / ACCESS_LOG)[-1]["route"] == "POST /v1/predict"


def test_a_full_disk_ends_no_request(tmp_path, caplog):
    AccessLog(tmp_path / "missing" / ACCESS_LOG).note(PREDICT)
    assert "a request is missing" in caplog.text
