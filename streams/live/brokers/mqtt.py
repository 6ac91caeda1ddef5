"""Receives the messages of an MQTT 5 broker into a spool, each acknowledged once it is on disk."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Literal

from streamcl.errors import BadRecord, ConfigError
from streamcl.events import RejectedRecord
from streamcl.sources.delivery import DeliveryGuarantee
from streams.live.brokers.envelope import record_of_fields, record_of_json, request_of_json
from streams.live.brokers.mqtt_session import MqttMessage, MqttOptions, MqttSession
from streams.live.spool.spool_producers import through_spool
from streams.live.spool.spool_writer import SpoolWriter, in_groups

SESSION_BEGUN = b"session"
"""The spool's note once the broker holds a session for this run."""
MESSAGES_IN_A_GROUP = 64  # messages that are synced together at most
PAUSE = 0.2  # seconds after which a waiting thread looks whether to stop


class MqttProducer:
    """The messages of some topics, with QoS 1 and a session that the broker keeps while no run reads.

    A message is acknowledged once the spool has synced it, so a crash in between brings it again; it is then
    known by its id. The broker is asked to send at most `inflight` messages ahead.

    Args:
        topics: one topic filter, or several.
        client_id: the name of the session; no two clients of a broker may have the same.
        host, port: of the broker.
        format: "properties": the payload is the image, and the message's user properties are label, id,
            subject, domain and privacy; "envelope": the payload is a JSON object with these and the image in
            base64.
        identity: how a message that comes again is known: by its "id" (one without is rejected), by its
            "content" (two equal messages are then one), or not at all ("none").
        requests: a topic of requests to forget, JSON objects with the fields of a request.
        qos: 1; or 0, with which messages may be lost.
        clean_start: whether the broker drops the session at each start, and with it what came meanwhile.
        session_expiry: seconds for which the broker keeps the session while no run reads.
        inflight: messages received and not yet acknowledged, at most.
        username, password: of the broker's account.
        tls: whether to use TLS, with the system's certificates or those in the file `ca`.
        keepalive: seconds between two signs of life.
        name: of the stream; None: the client id.
    """

    delivery = through_spool(
        DeliveryGuarantee("at_least_once", "messages that come again are dropped by their identity")
    )

    def __init__(
        self,
        topics: str | Sequence[str],
        client_id: str,
        host: str = "localhost",
        port: int = 1883,
        *,
        format: Literal["properties", "envelope"] = "properties",  # noqa: A002 - the configuration's word
        identity: Literal["id", "content", "none"] = "id",
        requests: str | None = None,
        qos: Literal[0, 1] = 1,
        clean_start: bool = False,
        session_expiry: int = 7 * 86_400,
        inflight: int = 64,
        username: str | None = None,
        password: str | None = None,
        tls: bool = False,
        ca: str | None = None,
        keepalive: int = 60,
        name: str | None = None,
    ) -> None:
        if qos not in {0, 1}:
            raise ConfigError(
                f"qos: {qos} is not supported",
                hint="qos: 1; a process that dies in the handshake of QoS 2 loses the message",
            )
        _check("format", format, ("properties", "envelope"))
        _check("identity", identity, ("id", "content", "none"))
        if not 1 <= inflight <= 65_535:
            raise ConfigError(f"inflight: {inflight} is not a number from 1 to 65535")
        filters = (topics,) if isinstance(topics, str) else tuple(topics)
        if requests in filters:
            raise ConfigError(f"requests: {requests} is a topic of records; requests need their own")
        self.name, self._format, self._identity, self._requests = (
            name or client_id,
            format,
            identity,
            requests,
        )
        self._options = MqttOptions(
            client_id=client_id,
            host=host,
            port=port,
            topics=(*filters, *([] if requests is None else [requests])),
            qos=qos,
            clean_start=clean_start,
            session_expiry=session_expiry,
            inflight=inflight,
            username=username,
            password=password,
            tls=tls,
            ca=ca,
            keepalive=keepalive,
        )
        MqttSession(self._options, self.name)  # a missing package shows before the run

    @property
    def guarantee(self) -> DeliveryGuarantee:
        """Exactly once from the spool on, with QoS 1, a session that is kept, and ids."""
        if self._options.qos == 0:
            return DeliveryGuarantee("at_most_once", "with QoS 0 the broker drops a message once it is sent")
        if self._options.clean_start:
            why = "clean_start drops what was published while no run reads"
            return DeliveryGuarantee("at_most_once", why)
        if self._identity == "none":
            why = "with identity: none a message that comes again is not known"
            return DeliveryGuarantee("at_least_once", why)
        why = f"messages that come again are dropped by their {self._identity}"
        return through_spool(DeliveryGuarantee("at_least_once", why))

    def run(self, writer: SpoolWriter, stop: threading.Event) -> None:
        """Receive until `stop`; raise SourceError where the broker refuses."""
        session = MqttSession(self._options, self.name, had_session=writer.note == SESSION_BEGUN)
        session.connect()
        try:
            while not stop.is_set():
                messages = session.take(MESSAGES_IN_A_GROUP, PAUSE)
                begun = SESSION_BEGUN if session.is_connected and writer.note != SESSION_BEGUN else None
                if not messages and begun is None:
                    continue
                if begun is not None:
                    writer.append_entries([], begun)
                read = [(list(writer.form.entries_of(self._value(each, writer))), each) for each in messages]
                for group in in_groups(read):
                    writer.append_entries([entry for entries, _ in group for entry in entries])
                    self.acknowledge(session, [message for _, message in group])
        finally:
            session.close()

    def acknowledge(self, session: MqttSession, messages: Sequence[MqttMessage]) -> None:
        """Let the broker drop messages that the spool has synced."""
        session.acknowledge(messages)

    def _value(self, message: MqttMessage, writer: SpoolWriter) -> Any:
        """Return the record in a message, or its request."""
        if message.topic == self._requests:
            return request_of_json(message.payload, message.digest)
        if self._format == "envelope":
            record = record_of_json(message.payload, "")
        else:
            record = record_of_fields({**message.properties, "image": message.payload}, "")
        if not isinstance(record, BadRecord) and record.get("id") == "":  # a label has none
            record = self._named(dict(record), message)
        if isinstance(record, BadRecord):
            if writer.form.policy.on_bad_record == "fail":
                raise record
            return RejectedRecord(0, message.digest, str(record))
        return record

    def _named(self, record: dict[str, Any], message: MqttMessage) -> dict[str, Any] | BadRecord:
        """Return a record to which its publisher gave no id, with the one that it has here."""
        if self._identity == "content":
            return {**record, "id": message.digest}
        if self._identity == "id":
            return BadRecord(
                "the message has no id, so that it would not be known when it comes again; give it a user "
                "property 'id', or set identity: content"
            )
        return {name: value for name, value in record.items() if name != "id"}


def _check(name: str, value: object, known: Sequence[str]) -> None:
    if value not in known:
        raise ConfigError(f"{name}: {value!r} is none of {', '.join(known)}")
