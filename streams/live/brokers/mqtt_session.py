"""A session with an MQTT 5 broker: messages in a bounded queue, acknowledged one by one."""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from streamcl.errors import MissingExtra, SourceError
from streams.bounded_queue import put_until

logger = logging.getLogger(__name__)

RECONNECT = (1, 30)  # seconds before the next attempt to connect, at first and at most
SHORT, SHORT_ONES = 10.0, 3  # seconds, and connections: two clients of one name close each other's in turn
TRANSIENT = {"Server unavailable", "Server busy", "Server shutting down", "Unspecified error"}
"""Refusals after which connecting is tried again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MqttOptions:
    """How to connect, as for `MqttProducer`."""

    client_id: str
    host: str
    port: int
    topics: tuple[str, ...]
    qos: int
    clean_start: bool
    session_expiry: int
    inflight: int
    username: str | None
    password: str | None
    tls: bool
    ca: str | None
    keepalive: int


@dataclass(frozen=True, slots=True)
class MqttMessage:
    """A message. connection: the number of the connection that brought it; mid, qos: for its confirmation."""

    topic: str
    payload: bytes
    properties: Mapping[str, bytes]
    mid: int
    qos: int
    connection: int

    @property
    def digest(self) -> str:
        """A name made of topic, payload and properties."""
        parts = [self.topic.encode(), self.payload]
        parts += [part for name in sorted(self.properties) for part in (name.encode(), self.properties[name])]
        found = hashlib.sha256()
        for part in parts:
            found.update(len(part).to_bytes(8, "big") + part)
        return found.hexdigest()[:32]


class MqttSession:
    """Connects, again and again, in a thread of paho's, and holds the messages that came.

    had_session: whether the broker is expected to have kept a session; that it has not is logged.
    clock: returns the time in seconds.
    """

    def __init__(
        self,
        options: MqttOptions,
        name: str,
        *,
        had_session: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options, self._name, self._had_session = options, name, had_session
        self._messages: queue.Queue[MqttMessage] = queue.Queue(options.inflight)
        self._lock = threading.Lock()
        self._connection, self._closed, self._said_qos = 0, threading.Event(), False
        self._clock, self._since, self._short = clock, 0.0, 0
        self._failure: SourceError | None = None
        self.is_connected = False
        self._client = self._make_client()

    def connect(self) -> None:
        """Begin to connect; return at once."""
        from paho.mqtt.packettypes import PacketTypes
        from paho.mqtt.properties import Properties

        options = self._options
        wanted = Properties(PacketTypes.CONNECT)
        wanted.SessionExpiryInterval = 0 if options.clean_start else options.session_expiry
        wanted.ReceiveMaximum = options.inflight
        self._client.connect_async(
            options.host,
            options.port,
            options.keepalive,
            clean_start=options.clean_start,
            properties=wanted,
        )
        self._client.loop_start()

    def take(self, limit: int, timeout: float) -> list[MqttMessage]:
        """Return the messages that have come; wait for the first. Raise SourceError where it was refused."""
        found = list[MqttMessage]()
        with suppress(queue.Empty):
            while len(found) < limit:
                message = self._messages.get_nowait() if found else self._messages.get(timeout=timeout)
                found.append(message)
        if not found and self._failure is not None:
            raise self._failure
        return found

    def acknowledge(self, messages: Sequence[MqttMessage]) -> None:
        """Confirm messages that came by this connection; the broker sends the others again."""
        with self._lock:
            for each in messages:
                if each.connection == self._connection and each.qos > 0:
                    self._client.ack(each.mid, each.qos)

    def close(self) -> None:
        """Disconnect; the broker keeps the session."""
        self._closed.set()
        self._client.disconnect()
        self._client.loop_stop()

    def _make_client(self) -> Any:
        try:
            from paho.mqtt.client import Client, MQTTv5
            from paho.mqtt.enums import CallbackAPIVersion
        except ImportError as error:
            raise MissingExtra(
                "the source mqtt needs the package paho-mqtt", hint='pip install "streamcl[mqtt]"'
            ) from error
        options = self._options
        client = Client(CallbackAPIVersion.VERSION2, options.client_id, protocol=MQTTv5, manual_ack=True)
        if options.username is not None:
            client.username_pw_set(options.username, options.password)
        if options.tls or options.ca is not None:
            client.tls_set(ca_certs=options.ca)
        client.reconnect_delay_set(*RECONNECT)
        client.on_connect, client.on_disconnect = self._on_connect, self._on_disconnect
        client.on_subscribe, client.on_message = self._on_subscribe, self._on_message
        return client

    def _on_connect(self, client: Any, _: Any, flags: Any, reason: Any, __: Any) -> None:
        from paho.mqtt.subscribeoptions import SubscribeOptions

        if reason.is_failure:
            if str(reason) not in TRANSIENT:
                self._fail(f"refuses the connection: {reason}", "correct user, password and client_id")
            return
        with self._lock:
            self._connection += 1  # confirmations of an earlier connection's messages would hit others
        if self._had_session and not flags.session_present and not self._options.clean_start:
            logger.warning(
                "%s: the broker has lost the session of %s; what it held for it is lost",
                self._name,
                self._options.client_id,
            )
        self._had_session = True
        # Retained messages come with a new subscription only, not with each connection.
        wanted = SubscribeOptions(
            qos=self._options.qos, retainHandling=SubscribeOptions.RETAIN_SEND_IF_NEW_SUB
        )
        client.subscribe([(topic, wanted) for topic in self._options.topics])

    def _on_subscribe(self, _: Any, __: Any, ___: Any, reasons: Sequence[Any], ____: Any) -> None:
        refused = [str(each) for each in reasons if each.is_failure or each.value < self._options.qos]
        if refused:
            self._fail(f"does not grant QoS {self._options.qos}: {refused[0]}", "see the broker's rights")
            return
        if not self.is_connected:
            logger.info("%s: connected to %s:%d", self._name, self._options.host, self._options.port)
        self.is_connected, self._since = True, self._clock()

    def _on_disconnect(self, _: Any, __: Any, ___: Any, reason: Any, ____: Any) -> None:
        if self.is_connected and not self._closed.is_set():
            logger.warning("%s: the broker is away (%s): waiting for it", self._name, reason)
            self._short = self._short + 1 if self._clock() - self._since < SHORT else 0
            if self._short == SHORT_ONES:
                logger.warning(
                    "%s: %d connections in a row were closed within seconds: does another client have the "
                    "client_id %s?",
                    self._name,
                    SHORT_ONES,
                    self._options.client_id,
                )
        self.is_connected = False

    def _on_message(self, _: Any, __: Any, message: Any) -> None:
        """Put a message into the queue; while it is full nothing more is read from the broker."""
        if message.qos == 0 and self._options.qos > 0 and not self._said_qos:
            self._said_qos = True
            logger.warning("%s: a publisher uses QoS 0, so that messages may be lost on the way", self._name)
        given = getattr(message.properties, "UserProperty", ())
        properties = {name: value.encode() for name, value in given}
        received = MqttMessage(
            message.topic, message.payload, properties, message.mid, message.qos, self._connection
        )
        put_until(self._messages, received, self._closed)

    def _fail(self, what: str, hint: str) -> None:
        address = f"{self._options.host}:{self._options.port}"
        self._failure = SourceError(f"{self._name}: the broker at {address} {what}", hint=hint)
        self._closed.set()
        self._client.disconnect()
