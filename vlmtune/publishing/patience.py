"""Patience with a Hub that is busy, breaks off or does not answer: some, and no more.

The Hub's client tries uploads and listings again by itself, but no other request, and it waits
for an answer for ever. Inside `patient_hub` every request has a time limit, and `attempt` tries
again what the client does not.
"""

import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from vlmtune.errors import UserError
from vlmtune.retry_after import seconds_until

if TYPE_CHECKING:
    from httpx2 import Client, Request, Response
    from tenacity import RetryCallState

logger = logging.getLogger(__name__)

T = TypeVar("T")
PASSING = {408, 425, 429}  # like all of 5xx, these may go well when tried again
# Loggers that tell addresses, which in an upload are signed: who has one may write.
LOGGERS_OF_ADDRESSES = (
    "httpx2",
    "huggingface_hub.utils._http",
    "huggingface_hub.file_download",
)

_pause = time.sleep


@dataclass(frozen=True)
class Patience:
    """How much of it there is.

    Attributes:
        attempts: how often one thing is tried.
        seconds: spent on waiting in all, between attempts and for answers that do not come. A Hub
            that asks for a longer wait is not waited for.
        answer_seconds: how long a request may go without a sign of life.
    """

    attempts: int = 7
    seconds: float = 180.0
    answer_seconds: float = 45.0


class PatientHub:
    """Calls of the Hub's client; `patient_hub` makes one."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._spent = 0.0

    def attempt(self, what: str, call: Callable[[], T]) -> T:
        """Do something that may be done twice, again where it failed for a passing reason.

        Args:
            what: what is done, for the log.

        Raises:
            Exception: the last one of the client, if it does not pass or patience is at its end.
        """
        import tenacity

        def announce(state: "RetryCallState") -> None:
            error = _error_of(state)
            self._spent += self._cost(state)
            logger.warning(
                "%s: %s; trying again in %.0f s (attempt %d of %d)",
                what,
                describe(error),
                state.upcoming_sleep,
                state.attempt_number + 1,
                self._patience.attempts,
            )

        attempts = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_is_worth_another_attempt),
            wait=_seconds_to_wait,
            stop=self._is_at_its_end,
            before_sleep=announce,
            sleep=_pause,
            reraise=True,
        )
        return attempts(call)

    def _is_at_its_end(self, state: "RetryCallState") -> bool:
        too_often = state.attempt_number >= self._patience.attempts
        return too_often or self._spent + self._cost(state) > self._patience.seconds

    def _cost(self, state: "RetryCallState") -> float:
        """Seconds that go by until the next attempt, and that this one waited in vain."""
        import httpx2

        stalled = isinstance(cause_of(_error_of(state)), httpx2.TimeoutException)
        return state.upcoming_sleep + (self._patience.answer_seconds if stalled else 0.0)

    def limit_time(self, request: "Request") -> None:
        """Give a request the time limits it does not have."""
        given = request.extensions.get("timeout") or {}
        limits = dict.fromkeys(("connect", "read", "write", "pool"), self._patience.answer_seconds)
        limits |= {name: limit for name, limit in given.items() if limit is not None}
        request.extensions = {**request.extensions, "timeout": limits}

    def refuse_long_waits(self, response: "Response") -> None:
        """Give up where the Hub asks for a wait that the client would make, however long."""
        asked = _seconds_asked(response) if _is_passing(response.status_code) else 0.0
        if asked > self._patience.seconds - self._spent:
            raise UserError(
                f"the Hub is busy ({response.status_code}) and asks to wait for {asked:.0f} s, "
                "longer than a push waits.",
                "Run the same command again then: everything before the push comes from the cache.",
            )


@contextmanager
def patient_hub(patience: Patience) -> Iterator[PatientHub]:
    """Put time limits on all requests of the Hub's client, and leave it as it was afterwards."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http  # the factory in use has no public name

    before = _http._GLOBAL_CLIENT_FACTORY
    hub = PatientHub(patience)

    def make_client() -> "Client":
        client = before()  # with the proxies and certificates that a user may have set
        hooks = client.event_hooks
        client.event_hooks = {
            "request": [*hooks["request"], hub.limit_time],
            "response": [*hooks["response"], hub.refuse_long_waits],
        }
        return client

    with ExitStack() as stack:
        for name in LOGGERS_OF_ADDRESSES:
            stack.enter_context(_without_queries(logging.getLogger(name)))
        stack.callback(set_client_factory, before)
        set_client_factory(make_client)
        yield hub


def cause_of(error: BaseException) -> BaseException:
    """What is behind an error that the client wraps: an answer, a lost connection, a full disk."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    while isinstance(error, RuntimeError | LocalEntryNotFoundError) and error.__cause__:
        error = error.__cause__
    return error


def may_pass(error: BaseException) -> bool:
    """Whether the same may go well later: the Hub is busy or down, or the network is."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    cause = cause_of(error)
    if isinstance(cause, HfHubHTTPError):
        return _is_passing(cause.response.status_code)
    lost = (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError)
    return isinstance(cause, (*lost, json.JSONDecodeError))  # a web page where JSON was due


def describe(error: BaseException) -> str:
    """An error in a few words."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    cause = cause_of(error)
    if isinstance(cause, HfHubHTTPError):
        return f"the Hub answers {cause.response.status_code} {cause.response.reason_phrase}"
    if isinstance(cause, httpx2.TimeoutException):
        return "the Hub does not answer"
    if isinstance(cause, json.JSONDecodeError):
        return "the Hub answers with something that is no JSON"
    return f"the connection broke off ({type(cause).__name__}: {one_line(cause)})"


def one_line(error: BaseException) -> str:
    """An error's own words on one line, without what an address holds after its `?`."""
    return _strip_queries(" ".join(str(error).split())).removesuffix(".")


def _is_passing(status: int) -> bool:
    return status in PASSING or status >= 500


def _is_worth_another_attempt(error: BaseException) -> bool:
    return may_pass(error) and not _has_been_tried_again(error)


def _has_been_tried_again(error: BaseException) -> bool:
    """Whether the client itself has tried several times: it then wraps the last error, or it was
    one of these requests."""
    request = _request_of(error)
    path = request.url.path if request is not None else ""
    listed = ("/preupload/", "/info/lfs/", "/tree/")
    return cause_of(error) is not error or any(part in path for part in listed)


def _request_of(error: BaseException) -> "Request | None":
    source: Any = getattr(error, "response", error)
    with suppress(AttributeError, RuntimeError):  # httpx2 raises the latter where there is none
        return source.request
    return None


def _seconds_to_wait(state: "RetryCallState") -> float:
    """Longer after each attempt, and at least as long as the Hub asks for."""
    import tenacity

    response = getattr(cause_of(_error_of(state)), "response", None)
    backoff = tenacity.wait_exponential_jitter(initial=1.0, max=30.0, jitter=1.0)(state)
    return max(backoff, _seconds_asked(response) if response is not None else 0.0)


def _seconds_asked(response: "Response") -> float:
    from huggingface_hub.utils import parse_ratelimit_headers

    limit = parse_ratelimit_headers(response.headers)
    if response.status_code == 429 and limit and limit.remaining == 0:
        return limit.reset_in_seconds + 1.0
    return seconds_until(response.headers.get("retry-after", ""))


def _error_of(state: "RetryCallState") -> BaseException:
    error = state.outcome.exception() if state.outcome else None
    assert error is not None  # only failed attempts are asked about
    return error


def _strip_queries(text: str) -> str:
    return re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]*", r"\1", text)


@contextmanager
def _without_queries(log: logging.Logger) -> Iterator[None]:
    """Keep what an address holds after its `?`, such as a signature, out of a log."""

    def strip(record: logging.LogRecord) -> bool:
        record.msg, record.args = _strip_queries(record.getMessage()), ()
        return True

    log.addFilter(strip)
    try:
        yield
    finally:
        log.removeFilter(strip)
