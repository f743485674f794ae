"""Pictures come from public servers only, in bounded time and size, and once."""

import datetime
import gzip
import hashlib
import multiprocessing
import socket
import sqlite3
import ssl
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from tests.picture_server import Answer, PictureServer
from vlmtune.catalog import downloads, guarded_network
from vlmtune.catalog.downloads import MAX_WAIT, Downloader, is_address
from vlmtune.catalog.guarded_network import DownloadError, is_public
from vlmtune.config.data import DownloadsConfig
from vlmtune.errors import UserError

PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40
OTHER = b"\xff\xd8\xff" + bytes(range(255, -1, -1)) * 40
Make = Callable[..., Downloader]


@pytest.fixture
def server() -> Iterator[PictureServer]:
    """A server on 127.0.0.1 that has a picture."""
    with PictureServer() as running:
        running.answers["/a.png"] = Answer(PICTURE)
        yield running


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Downloaders on one folder, which may fetch from loopback and give up after one attempt."""
    made: list[Downloader] = []

    def make_one(**config: Any) -> Downloader:
        defaults = {"allow_private": True, "attempts": 1, "timeout_seconds": 5.0}
        settings = DownloadsConfig(**{**defaults, **config})
        made.append(Downloader(settings, tmp_path / "pictures"))
        return made[-1]

    yield make_one
    for downloader in made:
        downloader.__exit__()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between attempts, in seconds, which are noted and not made."""
    noted: list[float] = []
    monkeypatch.setattr(downloads, "_pause", noted.append)
    return noted


def problem_of(downloader: Downloader, url: str) -> str:
    """What is told about an address that no picture can be had from."""
    with pytest.raises(DownloadError) as caught:
        downloader.fetch(url)
    return str(caught.value)


def resolve_as(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Let shop.example resolve to other addresses each time; the names asked for are noted."""
    real, asked, left = socket.getaddrinfo, [], list(answers)

    def resolve(host: str, port: Any, *args: Any, **kwargs: Any) -> Any:
        if host != "shop.example":
            return real(host, port, *args, **kwargs)
        asked.append(host)
        found = left.pop(0) if len(left) > 1 else left[0]
        return [entry for ip in found for entry in real(ip, port, *args, **kwargs)]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return asked


@pytest.fixture
def loopback_is_public(monkeypatch: pytest.MonkeyPatch) -> None:
    """127.0.0.1, and only this one, stands for a public server."""
    monkeypatch.setattr(guarded_network, "is_public", lambda ip: ip == "127.0.0.1" or is_public(ip))


# Fetching -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://a/b.png", True),
        ("HTTPS://a/b.png", True),
        ("images/1.png", False),
        ("ftp://a/b.png", False),
        ("/http://a", False),
        ("", False),
    ],
)
def test_is_address(text: str, expected: bool) -> None:
    """Only http and https addresses are fetched; all else is a path."""
    assert is_address(text) is expected


def test_picture_arrives(server: PictureServer, make: Make) -> None:
    """The bytes as the server has them; the request says who asks and wants no compression."""
    downloader = make()
    assert downloader.fetch(server.url("/a.png")) == PICTURE
    assert (downloader.fetched, downloader.reused) == (1, 0)
    headers = server.requests[0].headers
    assert headers["User-Agent"].startswith("vlmtune/")
    assert headers["Accept-Encoding"] == "identity"
    assert headers["Host"] == f"127.0.0.1:{server.port}"


def test_context_manager_closes(server: PictureServer, tmp_path: Path) -> None:
    """After the block the index is closed."""
    config = DownloadsConfig(allow_private=True)
    with Downloader(config, tmp_path) as downloader:
        assert downloader.fetch(server.url("/a.png")) == PICTURE
    with pytest.raises(sqlite3.ProgrammingError):
        downloader.fetch(server.url("/a.png"))


def test_cookies_are_not_kept(server: PictureServer, make: Make) -> None:
    """A cookie that a server sets is not sent back."""
    server.answers["/a.png"] = Answer(PICTURE, headers={"Set-Cookie": "who=me; Path=/"})
    server.answers["/b.png"] = Answer(OTHER)
    downloader = make()
    downloader.fetch(server.url("/a.png"))
    downloader.fetch(server.url("/b.png"))
    assert server.requests[1].headers["Cookie"] is None


def test_proxies_of_the_environment_are_not_used(
    server: PictureServer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy would connect to addresses that the guard never sees."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert make().fetch(server.url("/a.png")) == PICTURE


# The guard ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0",
        "100.64.0.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "192.0.2.1",
        "::1", "::", "fe80::1", "fe80::1%lo", "fec0::1", "fc00::1", "ff02::1", "ff0e::1",
        "2001:db8::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "2002:7f00:1::",
        "2002:a00:1::1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::808:808",
    ],
)  # fmt: skip
def test_private_addresses(address: str) -> None:
    """Whatever is not plainly on the public internet is private, also inside IPv6."""
    assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"],
)
def test_public_addresses(address: str) -> None:
    """Public addresses are, also inside IPv6 as networks without IPv4 write them."""
    assert is_public(address)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "localhost", "LOCALHOST", "[::1]", "169.254.169.254", "10.0.0.1", "0.0.0.0",
        "[::ffff:127.0.0.1]", "2130706433", "0x7f000001", "127.1", "[::]", "[64:ff9b::7f00:1]",
    ],
)  # fmt: skip
def test_private_hosts_are_refused(
    host: str, server: PictureServer, make: Make, pauses: list[float]
) -> None:
    """However loopback is spelt, no request reaches the server, and none is tried again."""
    problem = problem_of(make(allow_private=False, attempts=3), server.url("/a.png", host))
    assert "private or local network" in problem
    assert "data.downloads.allow_private" in problem
    assert server.requests == []
    assert pauses == []


def test_one_private_address_among_public_ones(
    server: PictureServer, make: Make, monkeypatch: pytest.MonkeyPatch, loopback_is_public: None
) -> None:
    """A name is refused if any of its addresses is private."""
    resolve_as(monkeypatch, ["127.0.0.1", "127.0.0.2"])
    problem = problem_of(make(allow_private=False), server.url("/a.png", "shop.example"))
    assert problem.startswith("shop.example is in a private or local network")
    assert server.requests == []


def test_name_is_resolved_once(
    server: PictureServer, make: Make, monkeypatch: pytest.MonkeyPatch, loopback_is_public: None
) -> None:
    """The address that was checked is the one connected to, whatever DNS says a moment later."""
    asked = resolve_as(monkeypatch, ["127.0.0.1"], ["127.0.0.2"])
    url = server.url("/a.png", "shop.example")
    assert make(allow_private=False).fetch(url) == PICTURE
    assert asked == ["shop.example"]
    assert server.requests[0].headers["Host"] == f"shop.example:{server.port}"


def test_next_address_is_tried(
    server: PictureServer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name whose first address takes no connection is reached at its second."""
    resolve_as(monkeypatch, ["127.0.0.9", "127.0.0.1"])
    assert make().fetch(server.url("/a.png", "shop.example")) == PICTURE


@pytest.mark.parametrize(
    "url",
    [
        "http://shop.example:99999/a.png",
        f"http://{'a' * 70}.example/",
        "http://[::1/",
        "http:///a.png",
        "http://%00/",
        "http://a\nb/",
        "http://shop.example:port/",
        "ftp://shop.example/a.png",
        "file:///etc/passwd",
        "http://\ud800/",
    ],
)
def test_impossible_addresses(url: str, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a cell holds, the answer is a DownloadError."""
    resolve_as(monkeypatch, ["127.0.0.1"])
    assert problem_of(make(), url)


# Redirects ------------------------------------------------------------------------------------


def redirect(target: str, status: int = 302) -> Answer:
    """An answer that leads elsewhere."""
    return Answer(status=status, headers={"Location": target})


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(server: PictureServer, make: Make, status: int) -> None:
    """Relative and absolute ones."""
    server.answers["/old"] = redirect("newer?x=1#top", status)
    server.answers["/newer?x=1"] = redirect(server.url("/a.png"), status)
    assert make().fetch(server.url("/old")) == PICTURE


@pytest.mark.parametrize("host", ["127.0.0.2", "[::1]", "169.254.169.254", "[::ffff:10.0.0.1]"])
def test_redirect_to_a_private_host(
    server: PictureServer, make: Make, loopback_is_public: None, host: str
) -> None:
    """The target of a redirect is checked like any address."""
    server.answers["/old"] = redirect(server.url("/a.png", host))
    problem = problem_of(make(allow_private=False), server.url("/old"))
    assert "private or local network" in problem
    assert [request.path for request in server.requests] == ["/old"]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("ftp://shop.example/a.png", "neither http nor https"),
        ("file:///etc/passwd", "neither http nor https"),
        ("http://me:secret@shop.example/", "user name or password"),
        ("http://[::1", "cannot be read"),
    ],
)
def test_redirect_that_is_refused(
    server: PictureServer, make: Make, target: str, expected: str
) -> None:
    """Other schemes, logins and nonsense; the message says that it was a redirect."""
    server.answers["/old"] = redirect(target)
    problem = problem_of(make(), server.url("/old"))
    assert problem.startswith("127.0.0.1 redirects to an address that ")
    assert expected in problem
    assert "secret" not in problem


def test_redirect_loop(server: PictureServer, make: Make, pauses: list[float]) -> None:
    """A loop ends after five redirects and is not tried again."""
    server.answers["/loop"] = redirect("/loop")
    assert "redirects more than 5 times" in problem_of(make(attempts=3), server.url("/loop"))
    assert len(server.requests) == 6


def test_redirect_without_target(server: PictureServer, make: Make) -> None:
    """A redirect to nowhere is told by its status."""
    server.answers["/old"] = Answer(status=302)
    assert "answers 302 Found" in problem_of(make(), server.url("/old"))


# TLS ------------------------------------------------------------------------------------------


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A self-signed certificate of shop.example, with its key."""
    pytest.importorskip("cryptography", reason="cryptography makes the certificate")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "shop.example")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder(issuer_name=name, subject_name=name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("shop.example")]), False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    path = tmp_path / "shop.pem"
    path.write_bytes(
        signed.public_bytes(pem)
        + key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path


@pytest.fixture
def names_shown() -> list[str | None]:
    """The server names that clients of `secure_server` have asked for."""
    return []


@pytest.fixture
def secure_server(certificate: Path, names_shown: list[str | None]) -> Iterator[PictureServer]:
    """The server of https://shop.example."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.sni_callback = lambda _socket, name, _context: names_shown.append(name)
    with PictureServer(context) as running:
        running.answers["/a.png"] = Answer(PICTURE)
        yield running


def test_tls_checks_the_name(
    secure_server: PictureServer, make: Make, certificate: Path,
    names_shown: list[str | None], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The connection goes to the checked address, but the certificate must be the name's."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    resolve_as(monkeypatch, ["127.0.0.1"])
    downloader = make()
    assert downloader.fetch(secure_server.url("/a.png", "shop.example")) == PICTURE
    assert names_shown == ["shop.example"]
    problem = problem_of(downloader, secure_server.url("/a.png", "localhost"))
    assert problem.startswith("localhost has no valid certificate: Hostname mismatch")


def test_untrusted_certificate(
    secure_server: PictureServer, make: Make, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    """A certificate that nobody vouches for is refused at once."""
    resolve_as(monkeypatch, ["127.0.0.1"])
    url = secure_server.url("/a.png", "shop.example")
    assert "has no valid certificate: self-signed" in problem_of(make(attempts=3), url)
    assert pauses == []


def test_redirect_from_https_to_http(
    secure_server: PictureServer, server: PictureServer, make: Make, certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """What began encrypted does not go on in the clear."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    resolve_as(monkeypatch, ["127.0.0.1"])
    secure_server.answers["/old"] = redirect(server.url("/a.png"))
    assert "not encrypted" in problem_of(make(), secure_server.url("/old", "shop.example"))
    assert server.requests == []


# Attempts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 520])
def test_passing_errors_are_tried_again(
    server: PictureServer, make: Make, pauses: list[float], status: int
) -> None:
    """The picture of the second attempt is taken."""
    server.answers["/a.png"] = [Answer(status=status), Answer(PICTURE)]
    assert make(attempts=2).fetch(server.url("/a.png")) == PICTURE
    assert len(pauses) == 1


def test_last_problem_is_told(server: PictureServer, make: Make, pauses: list[float]) -> None:
    """After `attempts` tries, with growing pauses, what was wrong at last is told."""
    server.answers["/a.png"] = Answer(status=503)
    problem = problem_of(make(attempts=4), server.url("/a.png"))
    assert problem == "127.0.0.1 answers 503 Service Unavailable"
    assert len(server.requests) == 4
    assert len(pauses) == 3
    assert 0.5 <= pauses[0] < pauses[2] <= 3


@pytest.mark.parametrize(
    ("asked", "low", "high"),
    [
        ("7", 7, 7),
        ("99999999", MAX_WAIT, MAX_WAIT),
        ("soon", 0.5, 1),
        ("-5", 0.5, 1),
        (format_datetime(datetime.datetime.now(datetime.UTC)), 0.5, 1),
        ("Fri, 31 Dec 2100 23:59:59 GMT", MAX_WAIT, MAX_WAIT),
    ],
)
def test_retry_after(
    server: PictureServer, make: Make, pauses: list[float], asked: str, low: float, high: float
) -> None:
    """A server that says when to come back is heeded, within reason."""
    busy = Answer(status=429, headers={"Retry-After": asked})
    server.answers["/a.png"] = [busy, Answer(PICTURE)]
    assert make(attempts=2).fetch(server.url("/a.png")) == PICTURE
    assert low <= pauses[0] <= high


@pytest.mark.parametrize(
    ("status", "hint"), [(404, "no picture at this address"), (410, "removed"), (403, "login")]
)
def test_lasting_errors(
    server: PictureServer, make: Make, pauses: list[float], status: int, hint: str
) -> None:
    """A picture that is not there is asked for once."""
    server.answers["/a.png"] = Answer(status=status)
    problem = problem_of(make(attempts=3), server.url("/a.png"))
    assert f"127.0.0.1 answers {status} " in problem
    assert hint in problem
    assert len(server.requests) == 1


def test_broken_connections_are_tried_again(
    server: PictureServer, make: Make, pauses: list[float]
) -> None:
    """A picture that breaks off before its announced end is never taken."""
    short = Answer(PICTURE[:100], headers={"Content-Length": str(len(PICTURE))})
    server.answers["/a.png"] = [short, Answer(PICTURE)]
    assert make(attempts=2).fetch(server.url("/a.png")) == PICTURE


def test_no_server(make: Make, pauses: list[float]) -> None:
    """A refused connection is tried again, then told."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/a.png"
    assert problem_of(make(attempts=3), url).startswith("the connection to 127.0.0.1 failed")
    assert len(pauses) == 2


@pytest.mark.parametrize(("code", "tries"), [("EAI_AGAIN", 3), ("EAI_NONAME", 1)])
def test_unknown_name(
    make: Make, monkeypatch: pytest.MonkeyPatch, pauses: list[float], code: str, tries: int
) -> None:
    """A name that does not exist is looked up once, a silent name server is asked again."""
    asked = []

    def resolve(*args: Any, **kwargs: Any) -> Any:
        asked.append(args)
        raise socket.gaierror(getattr(socket, code), "as told")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    problem = problem_of(make(attempts=3), "http://shop.example/a.png")
    assert problem == "the server name shop.example cannot be resolved"
    assert len(asked) == tries


# Time and size --------------------------------------------------------------------------------


def test_slow_servers_end_in_time(server: PictureServer, make: Make) -> None:
    """Stalls and drips, in the body and behind redirects, end with the deadline."""
    server.answers["/drip"] = Answer(server.drip(b"x", 0.05))
    server.answers["/stall"] = Answer(server.drip(b"x", 60), headers={"Content-Length": "9"})
    slow = Answer(server.drip(b"", 60), status=302, headers={"Location": "/drip"})
    server.answers["/redirect"] = slow
    for path in ("/drip", "/stall", "/redirect"):
        start = time.monotonic()
        problem = problem_of(make(timeout_seconds=0.4), server.url(path))
        assert problem == "127.0.0.1 did not send the picture in 0.4 seconds"
        assert 0.35 < time.monotonic() - start < 3


def test_dripping_headers_end_in_time(make: Make) -> None:
    """Bytes that come before the picture count too."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stopped = threading.Event()

        def drip() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
                try:
                    while not stopped.wait(0.05):
                        connection.sendall(b"x")
                except OSError:
                    return

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        start = time.monotonic()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/a.png"
        assert "did not send" in problem_of(make(timeout_seconds=0.4), url)
        assert time.monotonic() - start < 3
        stopped.set()
        thread.join(5)


def test_stalled_handshake_ends_in_time(make: Make) -> None:
    """A server that takes the connection and never speaks TLS does not hold it for ever."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        start = time.monotonic()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/a.png"
        assert "did not send" in problem_of(make(timeout_seconds=0.4), url)
        assert time.monotonic() - start < 3


def test_announced_size_is_refused(server: PictureServer, make: Make, pauses: list[float]) -> None:
    """Five gigabytes are refused before the first byte of them, and not asked for again."""
    headers = {"Content-Length": "5000000000"}
    server.answers["/big"] = Answer(server.drip(b"x", 60), headers=headers)
    start = time.monotonic()
    problem = problem_of(make(attempts=3), server.url("/big"))
    assert problem == "the picture at 127.0.0.1 is larger than 50 MB"
    assert time.monotonic() - start < 3
    assert len(server.requests) == 1


def endless() -> Iterable[bytes]:
    """Bytes without end."""
    while True:
        yield bytes(50_000)


@pytest.mark.parametrize("kind", ["endless", "bomb"])
def test_hidden_size_is_refused(server: PictureServer, make: Make, kind: str) -> None:
    """Endless and packed bodies are given up at the limit, and never held beyond it."""
    bomb = gzip.compress(bytes(100_000_000), 9)
    body = endless if kind == "endless" else bomb
    headers = {} if kind == "endless" else {"Content-Encoding": "gzip"}
    server.answers["/big"] = Answer(body, headers=headers)
    downloader = make(max_megabytes=1)
    tracemalloc.start()
    try:
        problem = problem_of(downloader, server.url("/big"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert problem == "the picture at 127.0.0.1 is larger than 1 MB"
    assert peak < 4_000_000


def test_size_at_the_limit(server: PictureServer, make: Make) -> None:
    """The limit itself is allowed, one byte more is not."""
    server.answers["/fits"] = Answer(b"x" * 1_000_000)
    server.answers["/not"] = Answer(lambda: [b"x" * 1_000_001])
    downloader = make(max_megabytes=1)
    assert len(downloader.fetch(server.url("/fits"))) == 1_000_000
    assert "larger than 1 MB" in problem_of(downloader, server.url("/not"))


@pytest.mark.parametrize("cut", [0, 20])
def test_unasked_compression(
    server: PictureServer, make: Make, pauses: list[float], cut: int
) -> None:
    """A packed picture is unpacked if it is whole."""
    packed = gzip.compress(PICTURE)
    packed = packed[: len(packed) - cut]
    server.answers["/a.png"] = Answer(packed, headers={"Content-Encoding": "gzip"})
    if cut:
        assert "only a part" in problem_of(make(), server.url("/a.png"))
    else:
        assert make().fetch(server.url("/a.png")) == PICTURE


@pytest.mark.parametrize(("coding", "expected"), [("br", "not asked for"), ("gzip", "broken data")])
def test_unusable_compression(
    server: PictureServer, make: Make, coding: str, expected: str
) -> None:
    """What cannot be unpacked is told."""
    server.answers["/a.png"] = Answer(PICTURE, headers={"Content-Encoding": coding})
    assert expected in problem_of(make(), server.url("/a.png"))


# What is no picture ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content_type", "body", "is_page"),
    [
        ("text/html; charset=utf-8", b"\n <div>Please log in</div>", True),
        ("image/png", b"\xef\xbb\xbf<!DOCTYPE html><html></html>", True),
        ("text/html", PICTURE, False),
        ("image/svg+xml", b"<svg xmlns='http://www.w3.org/2000/svg'/>", False),
    ],
)
def test_web_page(
    server: PictureServer, make: Make, content_type: str, body: bytes, is_page: bool
) -> None:
    """A page is told from a picture that is merely called one."""
    server.answers["/a.png"] = Answer(body, headers={"Content-Type": content_type})
    if is_page:
        problem = problem_of(make(), server.url("/a.png"))
        assert problem == "127.0.0.1 answers with a web page, not a picture"
    else:
        assert make().fetch(server.url("/a.png")) == body


def test_empty_file(server: PictureServer, make: Make) -> None:
    """No bytes are no picture."""
    server.answers["/a.png"] = Answer(b"")
    assert "empty file" in problem_of(make(), server.url("/a.png"))


@pytest.mark.parametrize(
    "url",
    [
        "http://me:hunter2@127.0.0.1:{port}/a.png",
        "http://127.0.0.1:{port}/hunter2?key=hunter2#hunter2",
        "http://127.0.0.1:1/a.png?key=hunter2",
        "http://me:hunter2@[::1/",
    ],
)
def test_secrets_are_not_told(server: PictureServer, make: Make, url: str) -> None:
    """Neither the message nor what caused it quotes more than the host, nor does the disk."""
    downloader = make()
    with pytest.raises(DownloadError) as caught:
        downloader.fetch(url.format(port=server.port))
    shown: BaseException | None = caught.value
    while shown is not None:
        assert "hunter2" not in str(shown)
        shown = shown.__cause__
    assert not any(request.headers["Authorization"] for request in server.requests)


def test_signed_addresses_are_not_on_disk(
    server: PictureServer, make: Make, tmp_path: Path
) -> None:
    """The index knows addresses by their hash only."""
    server.answers["/a.png?key=hunter2"] = Answer(PICTURE)
    make().fetch(server.url("/a.png?key=hunter2"))
    files = [path for path in (tmp_path / "pictures").rglob("*") if path.is_file()]
    assert len(files) >= 2
    assert not any(b"hunter2" in path.read_bytes() for path in files)


# The folder on disk ---------------------------------------------------------------------------


def blob_of(folder: Path, data: bytes) -> Path:
    """Where the folder keeps a picture."""
    sha256 = hashlib.sha256(data).hexdigest()
    return folder / "pictures" / sha256[:2] / sha256


def test_known_address_needs_no_network(server: PictureServer, make: Make, tmp_path: Path) -> None:
    """A second run takes the picture from disk, where it lies by its hash."""
    url = server.url("/a.png")
    make().fetch(url)
    assert blob_of(tmp_path, PICTURE).read_bytes() == PICTURE
    server.answers.clear()
    again = make()
    assert again.fetch(url) == PICTURE
    assert (again.fetched, again.reused) == (0, 1)
    assert len(server.requests) == 1
    assert [path.name for path in blob_of(tmp_path, PICTURE).parent.iterdir()] == [
        hashlib.sha256(PICTURE).hexdigest()
    ]


def test_equal_pictures_are_kept_once(server: PictureServer, make: Make, tmp_path: Path) -> None:
    """Two addresses of one picture share a file."""
    server.answers["/b.png"] = Answer(PICTURE)
    downloader = make()
    downloader.fetch(server.url("/a.png"))
    downloader.fetch(server.url("/b.png"))
    blobs = [path for path in (tmp_path / "pictures").glob("*/*") if path.is_file()]
    assert blobs == [blob_of(tmp_path, PICTURE)]


def test_refresh_of_an_unchanged_picture(server: PictureServer, make: Make) -> None:
    """The server is asked once a run, with the stamps of last time; 304 saves the bytes."""
    url = server.url("/a.png")
    stamps = {"ETag": '"v1"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
    server.answers["/a.png"] = [Answer(PICTURE, headers=stamps), Answer(status=304)]
    make().fetch(url)
    again = make(refresh=True)
    assert again.fetch(url) == again.fetch(url) == PICTURE
    assert (again.fetched, again.reused) == (0, 2)
    assert len(server.requests) == 2
    headers = server.requests[1].headers
    assert headers["If-None-Match"] == stamps["ETag"]
    assert headers["If-Modified-Since"] == stamps["Last-Modified"]


def test_refresh_of_a_changed_picture(server: PictureServer, make: Make) -> None:
    """The new picture is taken and known from then on."""
    url = server.url("/a.png")
    server.answers["/a.png"] = [Answer(PICTURE, headers={"ETag": '"v1"'}), Answer(OTHER)]
    make().fetch(url)
    again = make(refresh=True)
    assert again.fetch(url) == OTHER
    assert (again.fetched, again.reused) == (1, 0)
    assert make().fetch(url) == OTHER


def test_refresh_with_a_failing_server(
    server: PictureServer, make: Make, pauses: list[float]
) -> None:
    """An old picture never passes for a fresh one; without refresh it still serves."""
    url = server.url("/a.png")
    server.answers["/a.png"] = [Answer(PICTURE), Answer(status=500)]
    make().fetch(url)
    assert "500 Internal Server Error" in problem_of(make(refresh=True), url)
    assert make().fetch(url) == PICTURE


def test_stamps_stay_with_their_address(server: PictureServer, make: Make) -> None:
    """A redirect that now leads elsewhere is asked without the stamps of the old target."""
    stamp = {"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
    server.answers["/latest"] = [redirect("/v1"), redirect("/v1"), redirect("/v2")]
    server.answers["/v1"] = [Answer(PICTURE, headers=stamp), Answer(status=304)]
    server.answers["/v2"] = Answer(OTHER)
    url = server.url("/latest")
    make().fetch(url)
    assert make(refresh=True).fetch(url) == PICTURE
    assert make(refresh=True).fetch(url) == OTHER
    sent = [(r.path, r.headers["If-Modified-Since"]) for r in server.requests[2:]]
    assert sent == [
        ("/latest", None),
        ("/v1", stamp["Last-Modified"]),
        ("/latest", None),
        ("/v2", None),
    ]


def test_unasked_304(server: PictureServer, make: Make) -> None:
    """'Unchanged' is no answer where nothing is known."""
    server.answers["/a.png"] = Answer(status=304)
    assert "answers 304 Not Modified" in problem_of(make(), server.url("/a.png"))


def test_odd_stamps_are_not_sent_back(server: PictureServer, make: Make) -> None:
    """A stamp outside ASCII, which no header can hold, is left out."""
    server.answers["/a.png"] = [Answer(PICTURE, headers={"ETag": '"é"'}), Answer(OTHER)]
    make().fetch(server.url("/a.png"))
    assert make(refresh=True).fetch(server.url("/a.png")) == OTHER
    assert server.requests[1].headers["If-None-Match"] is None


@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
@pytest.mark.parametrize("refresh", [False, True])
def test_damaged_file_is_fetched_anew(
    server: PictureServer, make: Make, tmp_path: Path, damage: str, refresh: bool
) -> None:
    """A file that is not what its name says is replaced, not asked about."""
    url, blob = server.url("/a.png"), blob_of(tmp_path, PICTURE)
    server.answers["/a.png"] = Answer(PICTURE, headers={"ETag": '"v1"'})
    make().fetch(url)
    if damage == "gone":
        blob.unlink()
    else:
        blob.write_bytes(PICTURE[:-1] + (b"?" if damage == "changed" else b""))
    again = make(refresh=refresh)
    assert again.fetch(url) == PICTURE
    assert (again.fetched, again.reused) == (1, 0)
    assert server.requests[1].headers["If-None-Match"] is None
    assert blob.read_bytes() == PICTURE


def test_failed_write_leaves_nothing(
    server: PictureServer, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk leaves no half picture behind."""

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="No space left"):
        make().fetch(server.url("/a.png"))
    assert list(blob_of(tmp_path, PICTURE).parent.iterdir()) == []


def test_failures_are_not_kept(server: PictureServer, make: Make) -> None:
    """A picture that was missing is asked for again."""
    url = server.url("/late.png")
    downloader = make()
    problem_of(downloader, url)
    server.answers["/late.png"] = Answer(PICTURE)
    assert downloader.fetch(url) == PICTURE


def test_unusable_folder(tmp_path: Path) -> None:
    """A folder whose index is no index is told to the user."""
    (tmp_path / "index.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(UserError, match=r"downloaded pictures.*cannot be used"):
        Downloader(DownloadsConfig(), tmp_path)


# Together -------------------------------------------------------------------------------------


def test_threads_share_one_request(server: PictureServer, make: Make) -> None:
    """Of threads that want one picture, the first fetches it for all."""

    def slow() -> Iterable[bytes]:
        server.stopped.wait(0.2)
        yield PICTURE

    server.answers["/a.png"] = Answer(slow)
    downloader = make()
    with ThreadPoolExecutor(8) as threads:
        pictures = list(threads.map(downloader.fetch, [server.url("/a.png")] * 8))
    assert pictures == [PICTURE] * 8
    assert (downloader.fetched, downloader.reused) == (1, 7)
    assert len(server.requests) == 1


def test_threads_fetch_side_by_side(server: PictureServer, make: Make) -> None:
    """Eight pictures are sent only when all eight have been asked for."""
    together = threading.Barrier(8, timeout=4)

    def in_step() -> Iterable[bytes]:
        together.wait()
        yield PICTURE

    paths = [f"/{number}.png" for number in range(8)]
    server.answers |= dict.fromkeys(paths, Answer(in_step))
    downloader = make(workers=8)
    with ThreadPoolExecutor(8) as threads:
        pictures = list(threads.map(downloader.fetch, map(server.url, paths)))
    assert pictures == [PICTURE] * 8
    assert downloader.fetched == 8


def fetch_all(folder: Path, urls: list[str]) -> int:
    """In a process of its own: fetch and count what came over the network."""
    with Downloader(DownloadsConfig(allow_private=True, attempts=1), folder) as downloader:
        assert all(downloader.fetch(url) == PICTURE for url in urls)
        return downloader.fetched


def test_processes_share_a_folder(server: PictureServer, tmp_path: Path) -> None:
    """Processes that open a new folder at once do not trip over each other."""
    paths = [f"/{number}.png" for number in range(20)]
    server.answers |= dict.fromkeys(paths, Answer(PICTURE))
    urls = [server.url(path) for path in paths]
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        fetched = pool.starmap(fetch_all, [(tmp_path / "new", urls)] * 3)
    assert 20 <= sum(fetched) <= 60
    assert fetch_all(tmp_path / "new", urls) == 0
