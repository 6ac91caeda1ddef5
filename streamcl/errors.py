"""The errors that streamcl raises on purpose, each with the exit code that the command line gives it.

StreamclError              1
├── ConfigError            2   the YAML, an override or an argument is wrong; nothing ran
│   └── MissingExtra       2   a part needs a package that is not installed
├── SourceError            3   the stream failed, stalled or broke its own order
│   └── BadRecord          3   one record cannot be a sample; quarantined unless the policy says fail
├── CheckpointError        4   no checkpoint can be used
├── WeightsError           2   the backbone's weights do not fit or cannot be had
├── NotFinite              5   losses or gradients stayed NaN or infinite
├── ForgettingError        6   a request could not be carried out
│   └── RefusedRequest     6   one request cannot be taken in; one that comes with the stream is passed over
├── RunBusy                2   another process holds the run directory
└── DistributedError       7   another rank of the run failed, was killed, or does not answer
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

EXIT_STOPPED = 128 + 15
"""The exit code of a command that SIGTERM, 15, or SIGINT has ended in an orderly way: a run has committed."""
_MAX_WORD = 60  # characters: the search takes time with their square
_MAX_LISTED = 30
_MAX_TEXT = 1000  # characters of a foreign exception


class StreamclError(Exception):
    """An error whose message says what was found and expected, and whose `hint` says what to do."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class ConfigError(StreamclError):
    """A configuration that must not run; `problems` holds every fault found, one line each."""

    exit_code = 2

    def __init__(self, message: str, *, hint: str | None = None, problems: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint=hint)
        self.problems = problems


class MissingExtra(ConfigError):
    """An optional package is absent; the hint names the extra that brings it."""


class SourceError(StreamclError):
    """The source raised, stalled, ended too early, or its offsets are not those announced."""

    exit_code = 3


class SpoolFull(SourceError):
    """There is no room in the spool, and there was none for the time that the caller would wait."""


class BadRecord(SourceError):
    """One record of a source cannot become a sample (undecodable, wrong shape, label refused by policy)."""


class CheckpointError(StreamclError):
    """A checkpoint is damaged, foreign or newer than this version; names the file and the reason."""

    exit_code = 4


class WeightsError(StreamclError):
    """Backbone weights that are missing, incomplete, or that do not fit the named model."""

    exit_code = 2


class NotFinite(StreamclError):
    """Losses or gradients were not finite for more steps in a row than the configuration allows."""

    exit_code = 5


class ForgettingError(StreamclError):
    """A forgetting request that is malformed, impossible, or failed half-way (it stays in the ledger)."""

    exit_code = 6


class RefusedRequest(ForgettingError):
    """One request that is malformed, or repeats the id or key of another; the run goes on without it."""


class RunBusy(StreamclError):
    """Another living process works in the same run directory; the message names it."""

    exit_code = 2


class DistributedError(StreamclError):
    """Ranks that learn one stream together have lost one another, or their states differ."""

    exit_code = 7


def cause_of(error: BaseException) -> str:
    r"""Return the kind and the text of any exception in one line, shortened.

    >>> cause_of(OSError("no such\n device")), cause_of(SystemExit(0)), cause_of(KeyError())
    ('OSError: no such device', 'sys.exit(0) was called', 'KeyError')
    """
    if isinstance(error, SystemExit):
        return f"sys.exit({error.code!r:.80}) was called"
    try:
        text = " ".join(str(error).split())
    except Exception:  # a user's class may raise from its __str__
        text = "(its text cannot be read)"
    return f"{type(error).__name__}: {text[:_MAX_TEXT]}" if text else type(error).__name__


def nearest(word: str, known: Iterable[str], listed: str = "known") -> str:
    """Return a hint for a name that is not known: the closest known one, or a list of them.

    >>> nearest("plateu", ["relative_rise", "plateau"])
    "did you mean 'plateau'?"
    >>> nearest("demo", ["video", "demo_digits"])
    "did you mean 'demo_digits'?"
    >>> nearest("x", ["relative_rise", "plateau"])
    'known: relative_rise, plateau'
    """
    names = list(known)
    begun = [name for name in names if len(word) > 2 and name.startswith(word)]
    close = begun or (get_close_matches(word, names, 1) if len(word) <= _MAX_WORD else [])
    more = ", ..." if len(names) > _MAX_LISTED else ""
    if close:
        return f"did you mean {close[0]!r}?"
    return f"{listed}: {', '.join(names[:_MAX_LISTED]) or 'none'}{more}"


def malformed_request(error: ValidationError, fields: Iterable[str]) -> ForgettingError:
    """Return the first fault of a request to forget, in one line. fields: the names a request may have."""
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        return ForgettingError(f"a request has no field {place!r:.50}", hint=nearest(place, fields, "it has"))
    if not place:
        return ForgettingError(f"the request is not valid: {first_fault(error)}")
    return ForgettingError(f"a request's {first_fault(error)}, found {_shown(first['input'])}")


def first_fault(error: ValidationError) -> str:
    """Return the field and the message of the first fault, in one line and without the value."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, first["loc"]))
    message = first["msg"][:1].lower() + first["msg"][1:]
    return f"{place!r:.50} is not valid: {message}" if place else message


def _shown(value: object) -> str:
    try:
        return f"{value!r:.50}"
    except (
        ValueError,
        RecursionError,
    ):  # of an integer with more digits than Python prints, or of deep lists
        return type(value).__name__
