"""A connection to Redis that is opened again, after growing pauses, when the broker is away."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

from streamcl.errors import ConfigError, MissingExtra, SourceError

logger = logging.getLogger(__name__)

_Found = TypeVar("_Found")

PAUSES = (0.1, 5.0)  # seconds before the first attempt to connect again, and at most
RESPONSE_TIMEOUT = (
    15.0  # seconds without an answer after which a connection is lost; a whole AOF may be synced
)


class RedisConnection:
    """Carries out work on a client, and idles while the broker is away.

    Neither its messages nor `address` hold a user or a password.

    Args:
        url: redis://HOST:PORT/DB, rediss:// for TLS, or unix://PATH; may hold user and password.
        password: where the URL holds none.
        clock: returns the time in seconds.
        sleep: waits that many seconds.
    """

    def __init__(
        self,
        url: str,
        password: str | int | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._client = _client(url, password)
        self._clock, self._sleep = clock, sleep
        self._pause, self._next_attempt, self._away = PAUSES[0], 0.0, False

    @property
    def address(self) -> str:
        """Where the broker is: host and port, or a socket's path."""
        options = self._client.connection_pool.connection_kwargs
        return str(options.get("path") or f"{options.get('host')}:{options.get('port')}")

    def attempt(self, work: Callable[[Any], _Found], timeout: float) -> _Found | None:
        """Return what `work` returns for the client; None, after at most `timeout` seconds, while it is away.

        Raise SourceError where the broker is there and refuses.
        """
        import redis

        if (wait := self._next_attempt - self._clock()) > 0:
            self._sleep(min(wait, timeout))
            if self._clock() < self._next_attempt:
                return None
        try:
            found = work(self._client)
        except (redis.AuthenticationError, redis.exceptions.AuthorizationError, redis.ResponseError) as error:
            raise self._refusal(error) from None
        except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
            self._lost(error)
            return None
        self._found_again()
        return found

    def retry_until(self, work: Callable[[Any], _Found], timeout: float) -> _Found:
        """Return what `work` returns for the client. Raise SourceError after `timeout` seconds without."""
        until = self._clock() + timeout
        while (found := self.attempt(lambda client: (work(client),), 0.5)) is None:
            if self._clock() >= until:
                raise SourceError(
                    f"Redis at {self.address} does not answer",
                    hint="start it, or correct source.args.url; the same command continues",
                )
        return found[0]

    def close(self) -> None:
        """Disconnect."""
        self._client.close()

    def _lost(self, error: Exception) -> None:
        if not self._away:
            logger.warning("Redis at %s is away (%s): waiting for it", self.address, type(error).__name__)
        self._away = True
        self._next_attempt = self._clock() + self._pause
        self._pause = min(2 * self._pause, PAUSES[1])

    def _found_again(self) -> None:
        if self._away:
            logger.info("Redis at %s is back", self.address)
        self._away, self._pause = False, PAUSES[0]

    def _refusal(self, error: Exception) -> SourceError:
        return SourceError(f"Redis at {self.address} refuses: {error}")


def _client(url: str, password: str | int | None) -> Any:
    """Return a client that neither tries again by itself nor waits for ever."""
    try:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ImportError as error:
        raise MissingExtra(
            "the source redis needs the package redis", hint='pip install "streamcl[redis]"'
        ) from error
    try:
        client = redis.Redis.from_url(
            url,
            password=None if password is None else str(password),
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=RESPONSE_TIMEOUT,
            socket_connect_timeout=RESPONSE_TIMEOUT,
        )
        pool = client.connection_pool
        pool.connection_class(**pool.connection_kwargs)  # refuses options of the URL that it does not know
    except (ValueError, TypeError):  # its message might hold the password
        raise ConfigError(
            "the URL of Redis cannot be read",
            hint="redis://HOST:PORT/DB, rediss:// for TLS, or unix://PATH",
        ) from None
    return client
