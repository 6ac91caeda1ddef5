"""Every process of a served run is killed in turn under load: nothing that was accepted is lost."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest
from conditions import wait_for
from live_server import LiveServer, serving
from pictures import picture

from streamcl.serving.client import ServerError

KILLS = int(os.environ.get("STREAMCL_KILLS", "6"))
CLASSES = ("ant", "bee", "cat", "owl")
CONFIG = {
    "source": {"name": "push"},
    "max_samples": None,
    "batch": {"size": 8, "max_wait": "50ms"},
    "labels": {"wait": "1h", "max_waiting": 10_000},
    "forgetting": {"keep_statistics": "per_class"},
    "checkpoint": {"every_samples": 64, "every_seconds": 1, "delivery": "exactly_once"},
}


class Load:
    """Clients that send records, late labels, images and requests to forget, and note what was accepted."""

    def __init__(self):
        self.records, self.labels, self.requests, self.predicted = set(), {}, set(), []
        self.faults = []
        self._number = 0
        self._stop = threading.Event()
        self._threads = []

    def start(self, server):
        self._stop.clear()
        jobs = (self.send, self.predict)
        self._threads = [threading.Thread(target=self._repeat, args=(job, server)) for job in jobs]
        for each in self._threads:
            each.start()

    def stop(self):
        self._stop.set()
        for each in self._threads:
            each.join()

    def send(self, client):
        self._number += 1
        name, label = f"r{self._number}", CLASSES[self._number % 4]
        late = self._number % 3 == 0
        fields = {"id": name, "subject": f"p{self._number}"} | ({} if late else {"label": label})
        self.records.add(client.add_record(picture(label, self._number), **fields))
        if late:
            client.add_labels({name: label})
            self.labels[name] = label
        if self._number % 20 == 0:
            self.requests.add(client.forget(subject=f"p{self._number - 10}", key=f"k{self._number}").id)

    def predict(self, client):
        found = client.predict(picture("bee", 3))
        self.predicted.append((found.model.version, found.predictions[0]))

    def _repeat(self, job, server):
        while not self._stop.is_set():
            try:
                job(server.client)
            except ServerError as error:
                if error.status is not None and error.status not in {429, 503}:
                    self.faults.append(error)
                time.sleep(0.02)


@pytest.mark.faults
@pytest.mark.slow
def test_nothing_accepted_is_lost_whichever_process_is_killed(tmp_path):
    load, killed = Load(), 0
    while killed < KILLS:
        with serving(tmp_path, "--publish-every", "0.1", **CONFIG) as server:
            wait_for((server.run / "spool" / "push.json").exists)
            load.start(server)
            for _ in range(min(4, KILLS - killed)):
                done = len(load.records)
                wait_for(lambda done=done: len(load.records) > done + 5)
                _kill(server, killed)
                killed += 1
                if killed % 4 in {0, 3} or server.process.poll() is not None:
                    break  # learner or web process: start again
            load.stop()
            if server.process.poll() is None:
                server.process.kill()
            server.process.wait()
    assert not load.faults
    _check(tmp_path, load)


def _kill(server: LiveServer, turn: int) -> None:
    """Two predictors, the learner, the web process, and so on."""
    with suppress(ProcessLookupError, IndexError):
        if turn % 4 < 2:
            server.client.wait_until_ready(120)
            os.kill(server.predictors[0], signal.SIGKILL)
        else:
            os.kill(server.learner if turn % 4 == 2 else server.process.pid, signal.SIGKILL)


def _check(folder, load):
    with serving(folder, "--publish-every", "0.1", **CONFIG) as server:
        client = server.client
        wait_for((server.run / "spool" / "push.json").exists)
        client.add_record(picture("bee", 0), id="last", label="bee")
        wait_for(lambda: '"last"' in (server.run / "predictions.jsonl").read_text())
        for name in load.requests:
            assert client.wait_for_request(name, 120).status == "done"
        time.sleep(0.5)
        assert server.stop() == 143
    lines = [json.loads(each) for each in (server.run / "predictions.jsonl").read_text().splitlines()]
    kept = [each for each in lines if "id" in each]
    first = [each["id"] for each in kept if not each.get("labelled_later")]
    label_of = {each["id"]: each["label"] for each in kept}  # a later line of a record completes the first
    assert len(first) == len(set(first))
    forgotten = load.records - set(first)
    assert len(forgotten) <= len(load.requests)
    accepted = {name: label for name, label in load.labels.items() if name not in forgotten}
    assert accepted.items() <= label_of.items()
    versions = [version for version, _ in load.predicted]
    assert all(each.error is None for _, each in load.predicted)
    assert {each.label for _, each in load.predicted} <= {None, *CLASSES}
    assert versions == sorted(versions)
    verified = subprocess.run(
        [sys.executable, "-m", "streamcl", "verify", *map(str, (server.run / "receipts").glob("*.json"))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert verified.returncode == 0, verified.stdout + verified.stderr
