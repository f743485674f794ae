"""Pictures named by an http(s) address: fetched from public servers only, and kept on disk."""

import hashlib
import http.client
import io
import ssl
import threading
import time
import zlib
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Self

from vlmtune import __version__
from vlmtune.catalog.download_cache import KnownPicture, PictureCache
from vlmtune.catalog.guarded_network import (
    Clock,
    DownloadError,
    GuardedNetwork,
    PassingError,
)
from vlmtune.config.data import DownloadsConfig
from vlmtune.retry_after import seconds_until

if TYPE_CHECKING:
    from httpcore2 import Response
    from httpx2 import URL
    from tenacity import RetryCallState

MAX_REDIRECTS = 5
MAX_WAIT = 30.0  # seconds between two attempts, also where a server asks for more
PIECE = 65_536  # bytes that are unpacked at a time
REDIRECTS = {301, 302, 303, 307, 308}
PASSING = {408, 425, 429}  # like all of 5xx, these may go well when tried again
HINTS = {
    401: ": the picture cannot be had without a login",
    403: ": the picture cannot be had without a login",
    404: ": there is no picture at this address",
    410: ": the picture has been removed",
}

_pause = time.sleep


def is_address(text: str) -> bool:
    """Whether a picture is named by an http or https address, not by a path."""
    return text.strip().lower().startswith(("http://", "https://"))


class Downloader:
    """Fetches pictures, each address once: later the picture comes from a folder on disk.

    A context manager. `fetch` may be called from several threads, and several processes may
    share the folder.

    Args:
        config: time and size limits, and whether private networks may be asked.
        folder: where pictures are kept; made if missing.

    Attributes:
        fetched: pictures that came over the network.
        reused: pictures that came from the folder, some after asking whether they are unchanged.

    Raises:
        UserError: the folder cannot be used.
    """

    def __init__(self, config: DownloadsConfig, folder: Path) -> None:
        import httpcore2

        self.fetched = self.reused = 0
        self._config = config
        self._cache = PictureCache(folder)
        self._clock = Clock()
        # Built on httpcore2, as httpx2 would take proxies from the environment, and a proxy
        # connects to where the guard cannot see. It knows no cookies and no logins either.
        self._pool = httpcore2.ConnectionPool(
            ssl_context=httpcore2.default_ssl_context(),
            network_backend=GuardedNetwork(config.allow_private, self._clock),
            max_connections=config.workers,
            keepalive_expiry=5.0,
        )
        self._counting = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._asked: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()
        self._cache.close()

    def fetch(self, url: str) -> bytes:
        """The encoded picture at an address.

        Args:
            url: http or https address, without user name and password.

        Returns:
            The file's bytes, at most `config.max_megabytes` (of 1,000,000 bytes) if fetched now.

        Raises:
            DownloadError: the address is refused or no picture could be had from it.
        """
        key = _digest(url.strip())
        with self._locks.setdefault(key, threading.Lock()):
            known = self._cache.find(key)
            if known and (key in self._asked or not self._config.refresh):
                return self._reuse(known)
            new = self._download(url.strip(), known)
            self._asked.add(key)
            if new is known:
                return self._reuse(new)
            self._cache.add(key, new)
            with self._counting:
                self.fetched += 1
            return new.data

    def _reuse(self, picture: KnownPicture) -> bytes:
        with self._counting:
            self.reused += 1
        return picture.data

    def _download(self, url: str, known: KnownPicture | None) -> KnownPicture:
        """The picture: the known one itself where the server says that it is unchanged."""
        import tenacity

        attempts = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self._config.attempts),
            wait=_seconds_to_wait,
            retry=tenacity.retry_if_exception_type(PassingError),
            sleep=_pause,
            reraise=True,
        )
        return attempts(self._attempt, url, known)

    def _attempt(self, url: str, known: KnownPicture | None) -> KnownPicture:
        """Follow redirects to the picture, all within one deadline."""
        self._clock.start(self._config.timeout_seconds)
        address = _parse(url)
        for _ in range(MAX_REDIRECTS + 1):
            answer = self._ask(address, known)
            if not isinstance(answer, str):
                return answer
            address = _parse(answer, address)
        raise DownloadError(f"{address.host} redirects more than {MAX_REDIRECTS} times")

    def _ask(self, address: "URL", known: KnownPicture | None) -> KnownPicture | str:
        """One request: the picture, or where else to look for it."""
        import httpcore2

        target = httpcore2.URL(
            scheme=address.raw_scheme,
            host=address.raw_host,
            port=address.port,
            target=address.raw_path,
        )
        # Another address' stamps would make an old picture pass for the new one.
        stamped = known if known and known.source == _digest(str(address)) else None
        try:
            limits = {"timeout": {"pool": self._clock.left()}}
            headers = _request_headers(address, stamped)
            with self._pool.stream("GET", target, headers=headers, extensions=limits) as response:
                return self._read(response, address, stamped)
        except httpcore2.TimeoutException:
            limit = f"{self._config.timeout_seconds:g} seconds"
            raise PassingError(f"{address.host} did not send the picture in {limit}") from None
        except (httpcore2.NetworkError, httpcore2.ProtocolError) as error:
            raise _connection_error(address.host, error) from error

    def _read(
        self, response: "Response", address: "URL", stamped: KnownPicture | None
    ) -> KnownPicture | str:
        headers = {
            name.decode().lower(): value.decode("utf-8", "replace")
            for name, value in response.headers
        }
        if response.status in REDIRECTS and "location" in headers:
            return headers["location"]
        if response.status == HTTPStatus.NOT_MODIFIED and stamped:
            return stamped
        if response.status != HTTPStatus.OK:
            raise _status_error(address.host, response.status, headers.get("retry-after", ""))
        data = self._read_body(response, address.host, headers)
        if not data:
            raise DownloadError(f"{address.host} answers with an empty file")
        if _is_web_page(headers.get("content-type", ""), data):
            raise DownloadError(f"{address.host} answers with a web page, not a picture")
        etag, modified = headers.get("etag", ""), headers.get("last-modified", "")
        return KnownPicture(data, etag, modified, _digest(str(address)))

    def _read_body(self, response: "Response", host: str, headers: dict[str, str]) -> bytes:
        limit = int(self._config.max_megabytes * 1e6)
        too_large = f"the picture at {host} is larger than {self._config.max_megabytes:g} MB"
        if int(headers.get("content-length", 0)) > limit:
            raise DownloadError(too_large)
        body = io.BytesIO()
        coding = headers.get("content-encoding", "identity").strip().lower()
        for piece in _unpack(response.iter_stream(), coding, host):
            if body.tell() + len(piece) > limit:
                raise DownloadError(too_large)
            body.write(piece)
        return body.getvalue()


def _digest(text: str) -> str:
    """Stands for an address on disk, as signed addresses are secrets."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _parse(text: str, origin: "URL | None" = None) -> "URL":
    """Read an address, or the target of a redirect from `origin`, and refuse what is unsafe."""
    import httpx2

    leads = f"{origin.host} redirects to an address that" if origin else "the address"
    try:
        address = origin.join(text) if origin else httpx2.URL(text)
    except (httpx2.InvalidURL, ValueError):  # not chained, as it quotes the address
        raise DownloadError(f"{leads} cannot be read") from None
    if address.scheme not in ("http", "https"):
        raise DownloadError(f"{leads} is neither http nor https")
    if address.userinfo:
        raise DownloadError(f"{leads} holds a user name or password, which is never sent")
    if not address.host or "%" in address.host:
        raise DownloadError(f"{leads} names no server")
    if origin and (origin.scheme, address.scheme) == ("https", "http"):
        raise DownloadError(f"{leads} is not encrypted (http after https)")
    return address


def _request_headers(address: "URL", stamped: KnownPicture | None) -> list[tuple[str, str]]:
    headers = {
        "Host": address.netloc.decode("ascii"),
        "User-Agent": f"vlmtune/{__version__}",
        "Accept": "image/*,*/*;q=0.5",
        "Accept-Encoding": "identity",
        "If-None-Match": stamped.etag if stamped else "",
        "If-Modified-Since": stamped.modified if stamped else "",
    }
    return [(name, value) for name, value in headers.items() if value and value.isascii()]


def _status_error(host: str, status: int, retry_after: str) -> DownloadError:
    meaning = f"{status} {http.client.responses.get(status, '')}".strip()
    message = f"{host} answers {meaning}{HINTS.get(status, '')}"
    if status in PASSING or status >= 500:
        return PassingError(message, seconds_until(retry_after))
    return DownloadError(message)


def _connection_error(host: str, error: Exception) -> DownloadError:
    cause = error.args[0] if error.args else None  # httpcore2 wraps it, and drops the chain
    if isinstance(cause, ssl.SSLCertVerificationError):
        return DownloadError(f"{host} has no valid certificate: {cause.verify_message}")
    return PassingError(f"the connection to {host} failed: {error}")


def _seconds_to_wait(state: "RetryCallState") -> float:
    """Longer after each attempt, and as long as the server asks for, within reason."""
    import tenacity

    error = state.outcome.exception() if state.outcome else None
    asked = error.wait if isinstance(error, PassingError) else 0.0
    backoff = tenacity.wait_exponential_jitter(initial=0.5, max=8.0, jitter=0.5)(state)
    return min(max(asked, backoff), MAX_WAIT)


def _unpack(chunks: Iterable[bytes], coding: str, host: str) -> Iterator[bytes]:
    """Undo a compression that was not asked for, in small pieces so that a bomb is noticed."""
    if coding in ("", "identity"):
        yield from chunks
        return
    if coding not in ("gzip", "x-gzip", "deflate"):
        raise DownloadError(f"{host} sends the picture compressed, which was not asked for")
    unpacker = zlib.decompressobj(wbits=32 + zlib.MAX_WBITS)  # 32: gzip or zlib, whichever it is
    try:
        for chunk in chunks:
            while chunk and not unpacker.eof:
                yield unpacker.decompress(chunk, PIECE)
                chunk = unpacker.unconsumed_tail
        yield unpacker.flush()
    except zlib.error as error:
        raise DownloadError(f"{host} sends broken data: {error}") from error
    if not unpacker.eof:
        raise PassingError(f"{host} sent only a part of the picture")


def _is_web_page(content_type: str, data: bytes) -> bool:
    """By type and content: some servers call every file text/html, pictures too."""
    start = data[:200].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    named = "html" in content_type.lower() and start.startswith(b"<")
    return named or start.startswith((b"<!doctype html", b"<html"))
