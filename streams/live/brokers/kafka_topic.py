"""Reads the partitions of one Kafka topic in a fixed assignment, and says which of its records are gone."""

from __future__ import annotations

import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from streamcl.errors import ConfigError, MissingExtra, SourceError

logger = logging.getLogger(__name__)

Message: TypeAlias = Any
"""A confluent_kafka.Message without an error."""

BROKER_TIMEOUT = 30.0  # seconds for an answer of the brokers, and without the next record of a replay
MAX_BUFFERED = 256
"""Messages of a partition that wait for their turn in a replay; more are not fetched until then."""

GUARANTEES = {
    "enable.auto.commit": "false",
    "enable.auto.offset.store": "false",
    "auto.offset.reset": "error",
    "isolation.level": "read_committed",
    "enable.partition.eof": "true",
}
"""Settings of librdkafka that the guarantee depends on."""
DEFAULTS = {
    "queued.max.messages.kbytes": "32768",  # fetched ahead at most
    "reconnect.backoff.ms": "500",  # the least seconds between two attempts at a broker that is away
    "log_level": "2",  # critical: what is wrong is said once, by this module
}
"""Settings of librdkafka where the user gives none."""
RESERVED_SETTINGS = {*GUARANTEES, "bootstrap.servers", "metadata.broker.list", "group.id"}
SECRETS = ("password", "secret", "ssl.key.pem", "sasl.oauthbearer.config")


GAP_HINT = "give the topic a longer retention; on_gap: skip goes on with the first message that is left"


def connection_settings(
    brokers: str, group: str, settings: Mapping[str, str], credentials: str | Path | None
) -> dict[str, Any]:
    """Return the settings of a consumer.

    Args:
        brokers: "host:port", several with commas.
        group: the name under which offsets are committed.
        settings: of librdkafka, by name.
        credentials: a file of further settings, `name=value` a line, never copied to the run directory.

    Raises:
        ConfigError: a setting is the reader's own, a secret stands outside of the file, or it cannot be read.
    """
    for name in settings:
        if any(each in name for each in SECRETS):
            raise ConfigError(
                f"the setting {name} is a secret, and the configuration is copied into the run directory",
                hint="write it as a line name=value into a file, and give the file's path as credentials",
            )
    given = {**settings, **_credentials(credentials)}
    if own := sorted(RESERVED_SETTINGS & given.keys()):
        raise ConfigError(f"the setting {own[0]} cannot be given: the source sets it itself")
    servers = {"bootstrap.servers": brokers, "group.id": group}
    return {**DEFAULTS, **given, **GUARANTEES, **servers}


def _credentials(path: str | Path | None) -> dict[str, str]:
    if path is None:
        return {}
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"credentials: {path} cannot be read: {error}") from None
    settings = [line for each in lines if (line := each.strip()) and not line.startswith("#")]
    if any("=" not in each for each in settings):
        raise ConfigError(f"credentials: {path} has a line that is not name=value")
    return {name.strip(): value.strip() for name, _, value in (each.partition("=") for each in settings)}


class KafkaTopic:
    """A consumer of one topic. `begin` comes first; offsets are those of the next message a partition.

    It is assigned its partitions and is no member of a consumer group, so nobody takes a partition away from
    it, and it may be left unread for hours. Where a broker is away it waits for it.

    Args:
        name: of the topic.
        settings: see `connection_settings`.
        on_gap: where messages were removed before they were read, "fail" raises SourceError, and "skip" goes
            on with the first that is left.
        clock: returns the time in seconds.
    """

    def __init__(
        self,
        name: str,
        settings: Mapping[str, Any],
        on_gap: Literal["fail", "skip"] = "fail",
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        try:
            import confluent_kafka
        except ImportError as error:
            raise MissingExtra(
                "the source kafka needs the package confluent-kafka", hint='pip install "streamcl[kafka]"'
            ) from error
        self.name, self._on_gap, self._clock, self._kafka = name, on_gap, clock, confluent_kafka
        try:
            self._consumer = confluent_kafka.Consumer(
                {**settings, "error_cb": self._note_error}, logger=logger
            )
        except (confluent_kafka.KafkaException, TypeError, ValueError) as error:
            raise ConfigError(f"the settings of the source kafka are refused: {_reason(error)}") from None
        self._next: dict[int, int] = {}
        self._held = defaultdict[int, deque[Message]](deque)
        self._paused = set[int]()
        self._at_end = set[int]()  # partitions of which nothing has come since their end
        self._reached_end = set[int]()
        self._fault = ""  # the last error of a connection
        self._is_away = False

    def partitions(self) -> list[int]:
        """Return the topic's partitions. Raise SourceError where there is none, or no broker answers."""
        try:
            found = self._consumer.list_topics(self.name, timeout=BROKER_TIMEOUT).topics[self.name]
        except self._kafka.KafkaException as error:
            raise SourceError(
                f"no broker answers: {self._why(error)}",
                hint="the same command continues once one does",
            ) from None
        if found.error is not None or not found.partitions:
            raise SourceError(
                f"the topic {self.name!r} cannot be read: {found.error or 'it has no partition'}"
            )
        return sorted(found.partitions)

    def watermarks(self, partition: int) -> tuple[int, int]:
        """Return the offset of the first message that is left, and that after the last."""
        try:
            low, high = self._consumer.get_watermark_offsets(self._at(partition), timeout=BROKER_TIMEOUT)
        except self._kafka.KafkaException as error:
            raise SourceError(f"{self.name}/{partition}: no broker answers: {self._why(error)}") from None
        return low, high

    def start(self, partition: int, offset: int) -> int:
        """Return the offset from which to read on. Raise SourceError where messages from it on are gone."""
        low, high = self.watermarks(partition)
        if low <= offset <= high:
            return offset
        gap = f"offsets {offset} to {low - 1} were removed before they were read"
        if offset > high:
            gap = f"it was read up to offset {offset} and ends at {high} now: made anew, or cut by the broker"
        if self._on_gap == "fail":
            raise SourceError(f"{self.name}/{partition}: {gap}", hint=GAP_HINT)
        logger.warning("%s/%d: %s; reading goes on at offset %d", self.name, partition, gap, low)
        return low

    def begin(self, offsets: Mapping[int, int]) -> None:
        """Read these partitions, each from its offset on."""
        self._next.update(offsets)
        self._consumer.assign([self._at(each, offset) for each, offset in self._next.items()])

    def extend(self, offsets: Mapping[int, int]) -> None:
        """Read further partitions."""
        self._next.update(offsets)
        self._consumer.incremental_assign([self._at(each, offset) for each, offset in offsets.items()])

    @property
    def reached_ends(self) -> bool:
        """Whether the end of each partition has been reached once."""
        return self._reached_end >= self._next.keys()

    def take(self, limit: int, timeout: float) -> list[Message]:
        """Return messages that have come, `limit` at most; wait for the first of them only."""
        found = list[Message]()
        for partition, held in self._held.items():
            while held and len(found) < limit:
                found.append(held.popleft())
            if not held and partition in self._paused:
                self._consumer.resume([self._at(partition)])
                self._paused.remove(partition)
        return found or self._receive(limit, timeout)

    def take_at(self, partition: int, offset: int) -> Message | None:
        """Return the message at an offset, the next one to be taken of its partition; None where it is gone.

        Messages of other partitions that come meanwhile are held for `take`. Raise SourceError where the
        broker does not send it in time.
        """
        held, until = self._held[partition], self._clock() + BROKER_TIMEOUT
        while not held and partition not in self._at_end:
            if self._clock() > until:
                raise SourceError(f"{self.name}/{partition}: the broker does not send offset {offset}")
            for message in self._receive(MAX_BUFFERED, 0.5):
                until = self._clock() + BROKER_TIMEOUT
                self._hold(message)
        if held and held[0].offset() < offset:
            raise SourceError(f"{self.name}/{partition}: offset {held[0].offset()} was not there before")
        return held.popleft() if held and held[0].offset() == offset else None

    def commit(self, offsets: Mapping[int, int]) -> None:
        """Commit offsets under the group's name, without waiting for it: they are a hint for others."""
        try:
            self._consumer.commit(
                offsets=[self._at(each, offset) for each, offset in offsets.items()], asynchronous=True
            )
        except self._kafka.KafkaException as error:
            logger.warning("%s: offsets were not committed: %s", self.name, _reason(error))

    def lag(self, offsets: Mapping[int, int]) -> int:
        """Return how many offsets lie between these and the ends of their partitions."""
        return sum(max(0, self.watermarks(each)[1] - offset) for each, offset in offsets.items())

    def close(self) -> None:
        """Disconnect."""
        self._consumer.close()

    def _receive(self, limit: int, timeout: float) -> list[Message]:
        first = self._consumer.poll(timeout)
        found = [] if first is None else [first, *self._consumer.consume(limit - 1, 0.0)]
        if found and self._is_away:
            logger.info("%s: a broker answers again", self.name)
            self._is_away = False
        messages = [each for each in found if self._is_record(each)]
        for each in messages:
            self._next[each.partition()] = each.offset() + 1
        return messages

    def _is_record(self, message: Message) -> bool:
        """Return whether it is a message; raise SourceError for an error that waiting does not mend."""
        error, kinds, partition = message.error(), self._kafka.KafkaError, message.partition()
        if error is None:
            self._at_end.discard(partition)
            return True
        if error.code() == kinds._PARTITION_EOF:
            self._at_end.add(partition)
            self._reached_end.add(partition)
        elif error.code() == kinds._AUTO_OFFSET_RESET:
            self.begin({partition: self.start(partition, self._next[partition])})
        elif error.retriable():
            self._fault = error.str()
        else:
            raise SourceError(f"{self.name}/{partition}: {error.str()}")
        return False

    def _hold(self, message: Message) -> None:
        partition = message.partition()
        self._held[partition].append(message)
        if len(self._held[partition]) >= MAX_BUFFERED and partition not in self._paused:
            self._consumer.pause([self._at(partition)])
            self._paused.add(partition)

    def _at(self, partition: int, offset: int = 0) -> Any:
        return self._kafka.TopicPartition(self.name, partition, offset)

    def _why(self, error: Exception) -> str:
        """Return the last error of a connection, which says more than a time that ran out; else the error."""
        if not self._next:
            self._consumer.poll(0.0)  # hands over the errors so far; without partitions no message comes
        return self._fault or _reason(error)

    def _note_error(self, error: Any) -> None:
        """Keep an error of a connection, which is tried again; say once that no broker answers."""
        if error.code() != self._kafka.KafkaError._ALL_BROKERS_DOWN:
            self._fault = error.str()
        elif not self._is_away:
            self._is_away = True
            logger.warning("%s is waited for, no broker answers: %s", self.name, self._fault or error.str())


def _reason(error: Exception) -> str:
    """Return the sentence of a KafkaException, or of another."""
    first = error.args[0] if error.args else error
    return str(first.str() if hasattr(first, "str") else first)
