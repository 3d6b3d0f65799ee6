"""Access to a registry: anonymous, Basic, or a token from the server it names.

distribution-spec leaves it to the registries; this is what they agree on
(distribution, ``docs/content/spec/auth/token.md``).  Whose credentials go where:

- to the registry they are for, by the name that references have;
- to the token server which that registry itself names, in a 401 from its own
  origin: a registry that is trusted with a password may say who checks it;
- to nobody else: not to where redirects lead, and not over plain HTTP, except
  to a registry on loopback or one that the operator has declared insecure.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from urllib.parse import urlencode

import attrs
import msgspec
from twisted.internet.interfaces import IReactorTime

from ctd.fetch.challenges import Challenge, challenges
from ctd.fetch.errors import MalformedDocument, RegistryUnavailable, Unauthorized
from ctd.fetch.exchange import Exchange
from ctd.fetch.interfaces import ICredentials
from ctd.fetch.urls import UnusableUrl, Url
from ctd.singleflight import SingleFlight

TOKEN_LIMIT = 1 << 20
#: Repositories whose access is remembered; the oldest is forgotten first.
REMEMBERED = 512
#: How long a token lives that does not say so, and the longest it is kept.
TOKEN_SECONDS = 60.0
TOKEN_SECONDS_LIMIT = 24 * 3600.0

_PRINTABLE = re.compile(r"[\x21-\x7e]+")


@attrs.frozen
class Site:
    """A registry as it is spoken to.

    :ivar domain: its name in references.
    :ivar url: of its API's root.
    :ivar trusted: credentials may go to it: it has TLS, or needs none.
    """

    domain: str
    url: Url
    trusted: bool


class _Token(msgspec.Struct):
    token: str | None = None
    access_token: str | None = None
    expires_in: float | None = None


@attrs.frozen
class _Access:
    """:ivar header: the Authorization to send.  :ivar until: by the clock; None: always."""

    header: str = attrs.field(repr=False)
    until: float | None = None


_Key = tuple[Site, str]


class Authorizer:
    """Gets access to repositories and remembers it while it lasts."""

    def __init__(self, clock: IReactorTime, exchange: Exchange, credentials: ICredentials) -> None:
        self._clock = clock
        self._exchange = exchange
        self._credentials = credentials
        self._accesses: dict[_Key, _Access] = {}
        self._flights: SingleFlight[_Key, _Access | None] = SingleFlight()

    def known(self, site: Site, repository: str) -> str | None:
        """The Authorization to send, if it is known already."""
        access = self._accesses.get((site, repository))
        if access is None:
            return None
        if access.until is not None and access.until <= self._clock.seconds():
            del self._accesses[site, repository]
            return None
        return access.header

    async def answer(
        self, site: Site, repository: str, headers: Sequence[str], refused: str | None
    ) -> str | None:
        """The Authorization that a 401 from *site* asks for; None if there is no better one.

        :param headers: its ``WWW-Authenticate``.
        :param refused: the Authorization that was sent.
        :raise Unauthorized: the token server refuses.
        :raise RegistryUnavailable: it cannot be used.
        :raise MalformedDocument: it sent no token.
        """
        known = self.known(site, repository)
        if known is not None and known != refused:
            return known
        self._accesses.pop((site, repository), None)
        asked = challenges(headers)
        access = await self._flights.join(
            (site, repository), lambda: self._access(site, repository, asked)
        )
        if access is None or access.header == refused:
            return None
        while len(self._accesses) >= REMEMBERED:
            del self._accesses[next(iter(self._accesses))]
        self._accesses[site, repository] = access
        return access.header

    async def _access(
        self, site: Site, repository: str, asked: Sequence[Challenge]
    ) -> _Access | None:
        pair = await self._credentials.lookup(site.domain) if site.trusted else None
        basic = _basic(*pair) if pair is not None else None
        for challenge in asked:
            if challenge.scheme == "bearer":
                return await self._token(site, repository, challenge, basic)
        if basic is not None and any(challenge.scheme == "basic" for challenge in asked):
            return _Access(basic)
        return None

    async def _token(
        self, site: Site, repository: str, challenge: Challenge, basic: str | None
    ) -> _Access:
        url = _token_url(site, repository, challenge)
        begun = self._clock.seconds()
        reply = await self._exchange.get(url, authorization=basic)
        if reply.status != 200:
            await self._exchange.drain(reply)
            if reply.status in (401, 403):
                raise Unauthorized(site.domain, repository, reply.status)
            reason = f"its token server {url.netloc} answers HTTP {reply.status}"
            raise RegistryUnavailable(site.domain, reason)
        body = await self._exchange.body(reply, "token", TOKEN_LIMIT)
        try:
            document = msgspec.json.decode(body, type=_Token)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            raise MalformedDocument("token", "it is not JSON of the right shape") from None
        token = document.token or document.access_token or ""
        if not _PRINTABLE.fullmatch(token):
            raise MalformedDocument("token", "there is none, or it cannot be one")
        lifetime = document.expires_in if document.expires_in is not None else TOKEN_SECONDS
        lifetime = min(max(lifetime, 0.0), TOKEN_SECONDS_LIMIT)
        # Given up a little early, so that none expires on its way.
        return _Access(f"Bearer {token}", begun + lifetime * 0.9)


def _basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def _token_url(site: Site, repository: str, challenge: Challenge) -> Url:
    """The token server's URL, which asks for no more than reading *repository*."""
    try:
        url = Url.parse(challenge.parameters.get("realm", ""))
    except UnusableUrl as error:
        raise RegistryUnavailable(site.domain, f"its token server is {error}") from None
    if site.url.secure and not url.secure:
        raise RegistryUnavailable(site.domain, "its token server is not on HTTPS")
    query = {"scope": f"repository:{repository}:pull"}
    if service := challenge.parameters.get("service"):
        query["service"] = service
    joint = "&" if "?" in url.target else "?"
    return url.at(f"{url.target}{joint}{urlencode(query)}")
