"""One GET at a time: redirects, timeouts, bounded bodies, and what failures mean.

treq's client speaks to the agent, unbuffered.  Two of its habits are taken from
it: it has a cookie jar that takes none, and it is not shown ``Content-Encoding``,
since a blob's size and ranges are those of its bytes as sent.  Tests speak to
the real client and agent over a server in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from http.cookiejar import DefaultCookiePolicy
from typing import Any

import attrs
from hyperlink import EncodedURL
from treq.client import HTTPClient
from treq.cookies import IndexableCookieJar
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from ctd import __version__
from ctd.errors import ResourceExhausted
from ctd.fetch.errors import RegistryUnavailable
from ctd.fetch.reasons import reason_of
from ctd.fetch.urls import UnusableUrl, Url

#: How long a server may take to begin its reply, and to send all of a document.
HEAD_SECONDS = 30.0
BODY_SECONDS = 60.0
REDIRECT_LIMIT = 5
#: The most bytes read of a reply that only says what went wrong.
ERROR_LIMIT = 64 << 10

_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class _Exact(EncodedURL):
    """A URL that is sent as it stands: it is ASCII already, and its host may be an IPv6 address."""

    def to_uri(self) -> EncodedURL:
        """Itself."""
        return self


@implementer(IAgent)
class _AsSent:
    """Asks for bodies as they are, and lets nobody above decode what is encoded all the same."""

    def __init__(self, agent: IAgent) -> None:
        self._agent = agent

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        """See IAgent."""
        sent = Headers() if headers is None else headers.copy()
        sent.setRawHeaders("Accept-Encoding", ["identity"])
        asking: Deferred[IResponse] = self._agent.request(method, uri, sent, bodyProducer)
        return asking.addCallback(self._undressed)

    def _undressed(self, response: IResponse) -> IResponse:
        response.headers.removeHeader("Content-Encoding")
        return response


@attrs.frozen
class Reply:
    """A reply whose body has not been read yet.

    :ivar url: where it came from, after redirects.
    """

    url: Url
    response: IResponse

    @property
    def status(self) -> int:
        """The HTTP status."""
        code: int = self.response.code
        return code

    def headers(self, name: str) -> list[str]:
        """All values of a header."""
        values = self.response.headers.getRawHeaders(name.encode(), [])
        return [value.decode("latin-1") for value in values]

    def header(self, name: str) -> str:
        """The one value of a header; empty if there is none or more than one."""
        values = self.headers(name)
        return values[0] if len(values) == 1 else ""

    def hang_up(self) -> None:
        """Close the connection: nobody wants the body."""
        self.response.deliverBody(_Unwanted())


class Exchange:
    """Sends requests and reads small replies."""

    def __init__(self, clock: IReactorTime, agent: IAgent) -> None:
        self._clock = clock
        jar = IndexableCookieJar(DefaultCookiePolicy(allowed_domains=()))
        self._client = HTTPClient(_AsSent(agent), jar)

    async def get(
        self,
        url: Url,
        headers: Mapping[str, str] | None = None,
        authorization: str | None = None,
    ) -> Reply:
        """Get *url*, following redirects.

        :param authorization: for *url*'s origin; sent to no other.
        :raise RegistryUnavailable: no reply came, or it leads where ctd does not go.
        """
        asked = url
        for _ in range(REDIRECT_LIMIT + 1):
            reply = await self._once(url, headers or {}, authorization)
            if reply.status not in _REDIRECTS:
                return reply
            await self.drain(reply)
            try:
                url = url.redirected(reply.header("Location"))
            except UnusableUrl as error:
                reason = f"redirects to {error}" if reply.headers("Location") else "a bad redirect"
                raise RegistryUnavailable(asked.netloc, reason) from None
            if url.origin != reply.url.origin:
                # Not given back either if a later redirect leads home again.
                authorization = None
        raise RegistryUnavailable(asked.netloc, f"more than {REDIRECT_LIMIT} redirects")

    async def _once(self, url: Url, headers: Mapping[str, str], authorization: str | None) -> Reply:
        sent = Headers({name: [value] for name, value in headers.items()})
        sent.setRawHeaders("User-Agent", [f"ctd/{__version__}"])
        if authorization is not None:
            sent.setRawHeaders("Authorization", [authorization])
        asking = self._client.get(
            _Exact.from_text(str(url)),
            headers=sent,
            allow_redirects=False,
            unbuffered=True,
            reactor=self._clock,  # type: ignore[arg-type]
        )
        try:
            return Reply(url, await within(self._clock, HEAD_SECONDS, asking))
        except CancelledError:
            raise
        except TimeoutError:
            raise RegistryUnavailable(url.netloc, f"no reply in {HEAD_SECONDS:g} s") from None
        except Exception as error:  # noqa: BLE001 (whatever a peer can bring about)
            raise RegistryUnavailable(url.netloc, reason_of(error)) from None

    async def body(self, reply: Reply, what: str, limit: int) -> bytes:
        """All of a reply's body.

        :param what: ``manifest``, ``token`` ...: what an error calls it.
        :raise ResourceExhausted: it has more than *limit* bytes.
        :raise RegistryUnavailable: it did not come whole.
        """
        reading: Deferred[bytes] = Deferred(lambda _: body.hang_up())
        body = _Body(limit, reading)
        reply.response.deliverBody(body)
        try:
            whole: bytes = await within(self._clock, BODY_SECONDS, reading)
            return whole
        except _TooLong:
            raise ResourceExhausted(f"{what} size in bytes", limit) from None
        except TimeoutError:
            reason = f"its {what} did not come in {BODY_SECONDS:g} s"
            raise RegistryUnavailable(reply.url.netloc, reason) from None
        except _BrokeOff:
            reason = f"its {what} broke off at byte {body.size}"
            raise RegistryUnavailable(reply.url.netloc, reason) from None

    async def drain(self, reply: Reply) -> bytes:
        """Read a body nobody needs, so that the connection can be used again.

        :return: what came of it; empty if it was too long or broke off.
        """
        try:
            return await self.body(reply, "reply", ERROR_LIMIT)
        except (ResourceExhausted, RegistryUnavailable):
            return b""


def within(clock: IReactorTime, seconds: float, work: Deferred[Any]) -> Deferred[Any]:
    """*work*'s result, if it comes in time.

    Work that is cancelled ends with all sorts of errors; this one ends with
    CancelledError then, and with TimeoutError when the time is over.
    """

    why: list[Exception] = []

    def stop(reason: Exception) -> None:
        why.append(reason)
        work.cancel()
        outer.errback(reason)

    def ended(result: Any) -> None:
        if timer.active():
            timer.cancel()
        if not why:
            outer.callback(result)
        elif IResponse.providedBy(result):
            Reply(_NOWHERE, result).hang_up()

    def cancelled(_: Deferred[Any]) -> None:
        if timer.active():
            timer.cancel()
        stop(CancelledError())

    outer: Deferred[Any] = Deferred(cancelled)
    timer = clock.callLater(seconds, stop, TimeoutError())
    work.addBoth(ended)
    return outer


_NOWHERE = Url("http", "localhost", 80, "/")


class _TooLong(Exception):
    """The body has more bytes than may be read."""


class _BrokeOff(Exception):
    """The body ended before its end."""


class _Unwanted(Protocol):
    """A body that nobody wants: the connection is closed."""

    def connectionMade(self) -> None:
        """Close it."""
        if self.transport is not None:
            self.transport.loseConnection()


class _Body(Protocol):
    """Collects a body.

    :param done: gets it, or :class:`_TooLong`, or :class:`_BrokeOff`.
    """

    def __init__(self, limit: int, done: Deferred[bytes]) -> None:
        self.size = 0
        self._limit = limit
        self._done = done
        self._chunks: list[bytes] = []

    def dataReceived(self, data: bytes) -> None:
        """Keep a part."""
        if self._done.called:
            return
        self.size += len(data)
        self._chunks.append(data)
        if self.size > self._limit:
            self._chunks.clear()
            self.hang_up()
            self._done.errback(_TooLong())

    def connectionLost(self, reason: Failure = Failure(ResponseDone())) -> None:  # noqa: B008
        """The end, of one sort or another."""
        if self._done.called:
            return
        # Without a length the end of the connection is the body's: what it holds is checked later.
        if reason.check(ResponseDone, PotentialDataLoss):
            self._done.callback(b"".join(self._chunks))
        else:
            self._done.errback(_BrokeOff())

    def hang_up(self) -> None:
        """Close the connection."""
        if self.transport is not None:
            self.transport.loseConnection()
