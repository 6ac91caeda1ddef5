"""The messages of a Kafka topic as records, in a fixed assignment, with requests to forget beside them."""

from __future__ import annotations

import copy
import logging
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from streamcl.errors import BadRecord, ConfigError, ForgettingError, RefusedRequest, SourceError
from streamcl.events import ForgetRequest
from streamcl.protocols import State
from streamcl.sources.delivery import DeliveryGuarantee
from streamcl.sources.live_reader import Arrival, RecordKey
from streams.live.brokers.envelope import record_of_fields, record_of_json, request_of_json, text_id
from streams.live.brokers.kafka_topic import KafkaTopic, Message, connection_settings
from streams.user.label_records import LABEL_OF

logger = logging.getLogger(__name__)

MESSAGES_AT_ONCE = 64  # messages, so that few images are in memory
REFRESH = 60.0  # seconds between two looks for partitions that the topic has grown by
MAX_REQUEST_ID_LENGTH = 200  # characters of a request's id


class KafkaReader:
    """The messages of a topic, each once, read with `isolation.level=read_committed`.

    The position is the next offset of each partition, and a record's key is [topic, partition, offset]. A
    record without an id is called "topic-partition-offset". A message that cannot be read is rejected and
    keeps its offset.

    Args:
        brokers: "host:port", several with commas.
        topic: of the records.
        format: "headers": the message's value is the image, its headers are label, id, subject, domain and
            privacy; "envelope": the value is a JSON object with these and the image in base64.
        key: the meaning of a message's key: the record's "id" or its "subject", or none. A message with a key
            and without a value (a tombstone) is then a request to forget that id or subject.
        partitions: to read; None: all, and those that the topic grows by.
        new_partitions: those that the topic has grown by since the checkpoint are read from their beginning
            ("learn"), or end the run ("fail").
        requests: a topic of requests to forget, JSON objects with the fields of a request; it is read before
            the records.
        group: a name under which offsets are committed once a checkpoint has passed them, for tools that show
            a consumer's lag; None commits nothing.
        on_gap: messages that were removed before they were read end the run ("fail"), or are named in a
            warning ("skip").
        settings: further settings of librdkafka, by name, such as security.protocol.
        credentials: path of a file with settings that are secret, name=value a line.
        name: of the stream; None: the topic's.
        clock: returns the time in seconds.
    """

    delivery = DeliveryGuarantee("exactly_once", "while messages stay until a checkpoint has passed them")

    def __init__(
        self,
        brokers: str,
        topic: str,
        *,
        format: Literal["headers", "envelope"] = "headers",  # noqa: A002 - the word of the configuration
        key: Literal["id", "subject"] | None = None,
        partitions: Sequence[int] | None = None,
        new_partitions: Literal["learn", "fail"] = "learn",
        requests: str | None = None,
        group: str | None = None,
        on_gap: Literal["fail", "skip"] = "fail",
        settings: Mapping[str, Any] | None = None,
        credentials: str | Path | None = None,
        name: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        _check("format", format, ("headers", "envelope"))
        _check("key", key, ("id", "subject", None))
        _check("new_partitions", new_partitions, ("learn", "fail"))
        _check("on_gap", on_gap, ("fail", "skip"))
        if requests == topic:
            raise ConfigError(f"requests: {topic} is the topic of the records; requests need their own")
        self.name = name or topic
        self._topic, self._requests, self._group, self._on_gap = topic, requests, group, on_gap
        self._format, self._key, self._partitions = format, key, partitions
        self._new_partitions, self._clock, self._share = new_partitions, clock, (0, 1)
        texts = {each: str(value) for each, value in (settings or {}).items()}
        self._settings = connection_settings(brokers, group or "streamcl", texts, credentials)
        self._topics: dict[str, KafkaTopic] = {}
        self._reading = False
        self._next: dict[str, dict[int, int]] = {}
        KafkaTopic(topic, self._settings).close()  # a missing package or a wrong setting shows before the run

    rejoins = True  # with on_gap: skip records may be lost, and it can be opened again all the same

    @property
    def guarantee(self) -> DeliveryGuarantee:
        """Exactly once, as the position is the next offset of each partition."""
        if self._on_gap == "skip":
            return DeliveryGuarantee("at_most_once", "messages that the broker removes unread are left out")
        return self.delivery

    @property
    def stored_at(self) -> str:
        """The topic, which holds its messages until the broker removes them."""
        return f"the Kafka topic {self._topic} holds messages until the broker removes them"

    def shard(self, rank: int, world: int) -> KafkaReader:
        """Return a reader of the partitions that are `rank` modulo `world`; requests are the first one's."""
        shard = copy.copy(self)
        shard._share, shard._topics, shard._next = (rank, world), {}, {}
        if rank > 0:
            shard._requests = None
        return shard

    @staticmethod
    def merge(positions: Sequence[State | None]) -> State:
        """Return the position that the shards with these positions have reached together."""
        merged: State = {}
        for position in positions:
            for topic, offsets in (position or {}).items():
                merged[topic] = {**merged.get(topic, {}), **offsets}
        return merged

    def open(self, position: State | None) -> None:
        """Connect, and continue at `position`. Raise SourceError where messages after it are gone."""
        self._next = {}
        for name in (self._topic, self._requests):
            if name is None:
                continue
            topic = self._topics[name] = KafkaTopic(name, self._settings, self._on_gap, clock=self._clock)
            known = (position or {}).get(name)
            offsets = None if known is None else {int(each): offset for each, offset in known.items()}
            self._next[name] = self._starts(topic, offsets)
        self._reading, self._refresh = False, self._clock() + REFRESH

    def poll(self, timeout: float) -> Sequence[Arrival]:
        """Return messages that have come, requests first; wait for the first of them only."""
        self._begin()
        if self._clock() >= self._refresh:
            self._refresh = self._clock() + REFRESH
            self._look_for_partitions()
        if self._requests is not None:
            requests = self._topics[self._requests]
            older = not requests.reached_ends  # requests from before the start come before all records
            found = requests.take(MESSAGES_AT_ONCE, timeout if older else 0.0)
            if found or older:
                return [self._arrival(message) for message in found]
        return [self._arrival(each) for each in self._topics[self._topic].take(MESSAGES_AT_ONCE, timeout)]

    def replay(self, keys: Sequence[RecordKey]) -> Sequence[Arrival]:
        """Return the records with these keys; one that was removed is a BadRecord."""
        self._begin()
        arrivals = list[Arrival]()
        for key in keys:
            name, partition, offset = key
            if name not in self._topics or partition not in self._next[name]:
                raise SourceError(f"{name}/{partition} was read before, and this reader does not read it")
            message = self._topics[name].take_at(partition, offset)
            gone = Arrival(BadRecord(f"{name}/{partition} has no message at offset {offset}"), key)
            arrivals.append(gone if message is None else self._arrival(message))
        return arrivals

    def advance(self, keys: Sequence[RecordKey]) -> None:
        """Move the position past these messages."""
        for name, partition, offset in keys:
            self._next[name][partition] = offset + 1

    def position(self) -> State:
        """Return the next offset of each partition, by topic."""
        return {name: {str(each): at for each, at in offsets.items()} for name, offsets in self._next.items()}

    def acknowledge(self, position: Mapping[str, Any]) -> None:
        """Commit the offsets where `group` is given."""
        for name, offsets in position.items() if self._group is not None else ():
            if name in self._topics:
                self._topics[name].commit({int(each): offset for each, offset in offsets.items()})

    def fetch(self, ids: Sequence[str]) -> Generator[tuple[str, Any], None, None]:
        """Yield the records with these ids that were taken and are still there: the topic is read again."""
        topic, wanted = KafkaTopic(self._topic, self._settings), set(ids)
        taken = self._next.get(self._topic, {})  # of a reader that was never opened others have taken records
        try:
            topic.begin({each: topic.watermarks(each)[0] for each in self._own(topic.partitions())})
            while not topic.reached_ends:
                for message in topic.take(MESSAGES_AT_ONCE, 1.0):
                    value = self._arrival(message).value
                    if message.offset() >= taken.get(message.partition(), sys.maxsize):
                        continue
                    if (name := text_id(value)) is not None and name in wanted:
                        yield name, value
        finally:
            topic.close()

    def lag(self) -> int | None:
        """Return how many offsets lie before the ends of the partitions; None where no broker answers."""
        try:
            return sum(topic.lag(self._next[name]) for name, topic in self._topics.items())
        except SourceError:
            return None

    def close(self) -> None:
        """Disconnect."""
        for topic in self._topics.values():
            topic.close()
        self._topics = {}

    def _begin(self) -> None:
        """Have the messages sent from here on: a reader that only fetches records needs none."""
        for name, topic in self._topics.items() if not self._reading else ():
            topic.begin(self._next[name])
        self._reading = True

    def _own(self, partitions: Sequence[int]) -> list[int]:
        """Return those partitions of the topic of records that this reader reads."""
        rank, world = self._share
        if missing := set(self._partitions or ()) - set(partitions):
            raise SourceError(f"the topic {self._topic!r} has no partition {min(missing)}")
        return [each for each in self._partitions or partitions if each % world == rank]

    def _starts(self, topic: KafkaTopic, known: Mapping[int, int] | None) -> dict[int, int]:
        """Return the offset at which each partition begins.

        known: the next offsets; None where nothing was read yet, which begins with the first message that is
        left. A partition that is new since then begins at 0.
        """
        partitions = topic.partitions()
        own = self._own(partitions) if topic.name == self._topic else partitions
        if known is None:
            return {each: topic.watermarks(each)[0] for each in own}
        if gone := known.keys() - set(partitions):
            raise SourceError(f"the topic {topic.name!r} has lost partition {min(gone)}, which was read")
        return {
            each: topic.start(each, known[each]) if each in known else self._new(topic, each) for each in own
        }

    def _new(self, topic: KafkaTopic, partition: int) -> int:
        """Return the offset at which a partition begins that the topic has grown by."""
        if self._new_partitions == "fail":
            raise SourceError(
                f"the topic {topic.name!r} has a partition {partition} that the checkpoint does not know",
                hint="new_partitions: learn reads it from its beginning",
            )
        logger.warning("%s has grown: partition %d is read from its beginning", topic.name, partition)
        return topic.start(partition, 0)

    def _look_for_partitions(self) -> None:
        for name, topic in self._topics.items():
            try:
                partitions = topic.partitions()
            except SourceError as error:  # no broker answers: the next look may find one
                logger.warning("%s", error)
                continue
            own = self._own(partitions) if name == self._topic else partitions
            if new := {each: self._new(topic, each) for each in own if each not in self._next[name]}:
                topic.extend(new)
                self._next[name] |= new

    def _arrival(self, message: Message) -> Arrival:
        place = [message.topic(), message.partition(), message.offset()]
        made = self._request if message.topic() == self._requests else self._record
        return Arrival(made(message, "-".join(map(str, place))), place)

    def _request(self, message: Message, place: str) -> Any:
        return request_of_json(message.value() or b"", place[-MAX_REQUEST_ID_LENGTH:])

    def _record(self, message: Message, place: str) -> Any:
        """Return the record of a message, or the request of a tombstone, or why there is none."""
        names, value = {"id": place}, message.value()
        if self._key is not None:
            try:
                names[self._key] = message.key().decode()
            except (AttributeError, UnicodeDecodeError):
                return BadRecord(f"the message has no key in UTF-8, which is to be its {self._key}")
        if value is None:
            return self._tombstone(names, place)
        if self._format == "envelope":
            record = record_of_json(value, place)
        else:
            headers = {name: text for name, text in message.headers() or () if text is not None}
            record = record_of_fields({**headers, "image": value}, place)
        if isinstance(record, BadRecord) or self._key is None or LABEL_OF in record:
            return record
        return {**record, self._key: names[self._key]}

    def _tombstone(self, names: Mapping[str, str], place: str) -> Any:
        if self._key is None:
            return BadRecord("the message has no value; with key: id or key: subject it would ask to forget")
        chosen = {"ids": (names["id"],)} if self._key == "id" else {"subject": names["subject"]}
        try:
            return ForgetRequest(id=place[-MAX_REQUEST_ID_LENGTH:], **chosen)
        except ForgettingError as error:
            return RefusedRequest(str(error))


def _check(option: str, value: Any, allowed: Sequence[Any]) -> None:
    if value not in allowed:
        expected = ", ".join("null" if each is None else each for each in allowed)
        raise ConfigError(f"{option} is {value!r}; expected one of {expected}")
