"""URLs of registries: their origins, and where a redirect may lead.

A URL is taken apart once and put together again from checked parts, so that
what is compared is what is connected to.
"""

from __future__ import annotations

import re
from urllib.parse import urljoin, urlsplit

import attrs

_PORTS = {"http": 80, "https": 443}
_PRINTABLE = re.compile(r"[\x21-\x7e]{1,16384}")
_HOST = re.compile(r"[a-z0-9_](?:[a-z0-9._-]{0,253}[a-z0-9_.])?|[0-9a-f:]+(?:[0-9.]+)?")


class UnusableUrl(ValueError):
    """A URL that ctd does not go to; the message says why and never quotes it."""


@attrs.frozen
class Url:
    """An ``http`` or ``https`` URL.

    :ivar host: a name or an address, an IPv6 one without brackets.
    :ivar target: path and query, as they go on the wire; may hold signatures.
    """

    scheme: str
    host: str
    port: int
    target: str = attrs.field(repr=False)

    @classmethod
    def parse(cls, text: str, base: Url | None = None) -> Url:
        """Read a URL, relative to *base* if there is one.

        :raise UnusableUrl: it is none, has another scheme, or holds a user name.
        """
        # Checked first: urlsplit drops line ends and tabs without a word.
        if not _PRINTABLE.fullmatch(text) or "\\" in text:
            raise UnusableUrl("a URL that is too long or has characters that none may have")
        try:
            parts = urlsplit(urljoin(str(base), text) if base is not None else text)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            raise UnusableUrl("a malformed URL") from None
        if parts.scheme not in _PORTS:
            raise UnusableUrl("a URL that is neither http nor https")
        if "@" in parts.netloc:
            raise UnusableUrl("a URL with a user name in it")
        if not _HOST.fullmatch(host) or port == 0:
            raise UnusableUrl("a URL without a valid host and port")
        query = f"?{parts.query}" if parts.query else ""
        return cls(parts.scheme, host, port or _PORTS[parts.scheme], (parts.path or "/") + query)

    @property
    def secure(self) -> bool:
        """Whether it is spoken to over TLS."""
        return self.scheme == "https"

    @property
    def origin(self) -> tuple[str, str, int]:
        """Scheme, host and port: credentials of one origin are no other's business."""
        return self.scheme, self.host, self.port

    @property
    def netloc(self) -> str:
        """``host[:port]``, for people: it holds no secret."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    def at(self, target: str) -> Url:
        """Another path of the same origin."""
        return attrs.evolve(self, target=target)

    def redirected(self, location: str) -> Url:
        """Where *location*, sent by this URL's server, leads.

        :raise UnusableUrl: it may not be followed: no URL, or https to http.
        """
        url = Url.parse(location, self)
        if self.secure and not url.secure:
            raise UnusableUrl("plain HTTP, from HTTPS")
        return url

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}{self.target}"
