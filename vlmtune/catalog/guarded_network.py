"""A network that reaches public servers only, and no server for longer than a deadline."""

import ipaddress
import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from httpcore2 import NetworkBackend, NetworkStream
else:
    NetworkBackend = NetworkStream = object  # the real bases would make this import slow

NAT64 = ipaddress.ip_network("64:ff9b::/96")


class DownloadError(Exception):
    """The picture cannot be had; the message says why, naming the host but no more of the address.

    Paths and queries can hold access keys, and the message ends up in the ledger.
    """


class PassingError(DownloadError):
    """May go well when tried again, after `wait` seconds at least."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


def is_public(address: str) -> bool:
    """Whether a numeric IP address belongs to the public internet, not to some private network.

    An IPv6 address that stands for an IPv4 one (mapped, 6to4, NAT64) is judged by the latter.
    """
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        nat64 = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in NAT64 else None
        ip = ip.ipv4_mapped or ip.sixtofour or nat64 or ip
    site_local = isinstance(ip, ipaddress.IPv6Address) and ip.is_site_local
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or site_local)


class Clock(threading.local):
    """The deadline of the picture that the current thread is fetching."""

    end = 0.0

    def start(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds left, always more than none."""
        import httpcore2

        left = self.end - time.monotonic()
        if left <= 0:
            raise httpcore2.ReadTimeout
        return left


class GuardedNetwork(NetworkBackend):
    """Connects to the very addresses that were checked, so that DNS cannot change its mind."""

    def __init__(self, allow_private: bool, clock: Clock) -> None:
        self._allow_private = allow_private
        self._clock = clock

    def connect_tcp(self, host: str, port: int, *_: Any, **options: Any) -> "NetworkStream":
        """Try the host's addresses in turn; each gets an equal share of the time left."""
        import httpcore2

        addresses = self._addresses(host)
        for others_left in reversed(range(len(addresses))):
            address = addresses[-1 - others_left]
            options["timeout"] = self._clock.left() / (others_left + 1)
            try:
                stream = httpcore2.SyncBackend().connect_tcp(address, port, **options)
                return _TimedStream(stream, self._clock)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                if not others_left:
                    raise
            except OverflowError:
                raise DownloadError(f"{host} has no port {port}") from None
        raise httpcore2.ConnectError("the name has no address")

    def _addresses(self, host: str) -> list[str]:
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, ValueError) as error:  # ValueError: a label that is too long
            passing = getattr(error, "errno", None) == socket.EAI_AGAIN
            kind = PassingError if passing else DownloadError
            raise kind(f"the server name {host} cannot be resolved") from error
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        if not self._allow_private and not all(is_public(address) for address in addresses):
            raise DownloadError(
                f"{host} is in a private or local network, from which no pictures are fetched "
                "unless data.downloads.allow_private is set"
            )
        return addresses


class _TimedStream(NetworkStream):
    """A connection that ends with the deadline, however slowly the bytes trickle in."""

    def __init__(self, stream: "NetworkStream", clock: Clock) -> None:
        self._stream = stream
        self._clock = clock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._clock.left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._clock.left())

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> "NetworkStream":
        secure = self._stream.start_tls(ssl_context, server_hostname, self._clock.left())
        return _TimedStream(secure, self._clock)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
