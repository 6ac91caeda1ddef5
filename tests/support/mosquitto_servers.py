"""A private mosquitto on a port of its own, which a test may stop, kill and start again; and a publisher."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conditions import wait_for
from ports import free_port


class MosquittoServer:
    """A broker that keeps sessions on disk. port: where it listens; folder: what it has on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self._process = folder, free_port(), None
        self.write_settings("allow_anonymous true")
        self.start()

    def write_settings(self, *more: str) -> None:
        """Settings from its next start on."""
        settings = [f"listener {self.port} 127.0.0.1", "user root", "persistence true"]
        settings += [f"persistence_location {self.folder}/", "autosave_on_changes true"]
        settings += ["autosave_interval 1", "max_queued_messages 0", *more]
        (self.folder / "mosquitto.conf").write_text("\n".join(settings) + "\n")

    def start(self) -> None:
        """Start it, with what it had on disk, and wait until it listens."""
        command = ["mosquitto", "-c", str(self.folder / "mosquitto.conf")]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_for(lambda: self._process.poll() is not None or self._listens())
        assert self._process.poll() is None, (self.folder / "log").read_text()

    def _listens(self) -> bool:
        with socket.socket() as attempt:
            return attempt.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        """End it in good order: it saves what it holds."""
        self._process.terminate()
        self._process.wait()

    def kill(self) -> None:
        """Kill it with -9: what it has not saved is lost."""
        self._process.kill()
        self._process.wait()

    def publish(self, messages: Iterable[tuple[str, bytes, dict[str, Any]]], qos: int = 1) -> None:
        """Publish (topic, payload, user properties); on return the broker has confirmed them."""
        from paho.mqtt.client import Client, MQTTv5
        from paho.mqtt.enums import CallbackAPIVersion
        from paho.mqtt.packettypes import PacketTypes
        from paho.mqtt.properties import Properties

        client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTv5)
        client.connect("127.0.0.1", self.port)
        client.loop_start()
        sent = []
        for topic, payload, names in messages:
            properties = Properties(PacketTypes.PUBLISH)
            if names:
                properties.UserProperty = list(names.items())
            sent.append(client.publish(topic, payload, qos, properties=properties))
        for each in sent:
            each.wait_for_publish(20)
        client.disconnect()
        client.loop_stop()


@pytest.fixture
def mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MosquittoServer]:
    """A broker of the test's own, started anew."""
    pytest.importorskip("paho.mqtt.client", reason='pip install "streamcl[mqtt]"')
    if shutil.which("mosquitto") is None and not Path("/usr/sbin/mosquitto").exists():
        pytest.skip("there is no mosquitto: apt-get install mosquitto")
    server = MosquittoServer(tmp_path_factory.mktemp("mosquitto"))
    yield server
    server.kill()
