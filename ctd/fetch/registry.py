"""The distribution API: what :class:`ctd.fetch.interfaces.IRegistry` promises."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import msgspec
from twisted.internet.interfaces import IReactorTime
from zope.interface import implementer

from ctd.errors import InvalidArgument, NotFound, ResourceExhausted
from ctd.fetch.auth import Authorizer, Site
from ctd.fetch.connections import Connections
from ctd.fetch.documents import media_type, parse
from ctd.fetch.errors import (
    DigestMismatch,
    MalformedDocument,
    RegistryUnavailable,
    TransferBroken,
    Unauthorized,
)
from ctd.fetch.exchange import Exchange, Reply
from ctd.fetch.interfaces import MANIFEST_LIMIT, Document, ICredentials, IRegistry
from ctd.fetch.reference import Reference, is_loopback, is_tag
from ctd.fetch.transfer import BlobStream, opened
from ctd.fetch.urls import UnusableUrl, Url
from ctd.model import Descriptor, Digest, MediaType

#: Tags asked for at a time, and the most that are read.
TAGS_PAGE = 1000
TAGS_LIMIT = 100_000

_ACCEPT = ", ".join(sorted(MediaType.MANIFESTS | MediaType.INDEXES))
_NEXT = re.compile(r'<([^<>]*)>\s*;\s*rel="?next"?')
_CODE = re.compile(r"[A-Z][A-Z0-9_]{0,63}")


class _Tags(msgspec.Struct):
    tags: list[str] | None = None


class _Error(msgspec.Struct):
    code: str = ""


class _Errors(msgspec.Struct):
    errors: list[_Error] = []


@implementer(IRegistry)
class Registry:
    """All registries, over one set of connections.

    :param insecure: registries (``name[:port]``) spoken to in plain HTTP.
    """

    def __init__(
        self,
        clock: IReactorTime,
        connections: Connections,
        credentials: ICredentials,
        insecure: Iterable[str] = (),
    ) -> None:
        self._clock = clock
        self._connections = connections
        self._exchange = Exchange(clock, connections.agent)
        self._authorizer = Authorizer(clock, self._exchange, credentials)
        self._insecure = frozenset(host.lower() for host in insecure)

    async def close(self) -> None:
        """Close the idle connections; who reads a blob closes that by leaving it."""
        await self._connections.close()

    async def resolve(self, reference: Reference, plain_http: bool | None = None) -> Document:
        """See :class:`ctd.fetch.interfaces.IRegistry`."""
        return await self._document(reference, reference.target, reference.digest, None, plain_http)

    async def manifest(
        self, reference: Reference, descriptor: Descriptor, plain_http: bool | None = None
    ) -> Document:
        """See :class:`ctd.fetch.interfaces.IRegistry`."""
        if descriptor.size > MANIFEST_LIMIT:
            raise ResourceExhausted("manifest size in bytes", MANIFEST_LIMIT)
        digest = descriptor.digest
        return await self._document(reference, str(digest), digest, descriptor, plain_http)

    async def _document(
        self,
        reference: Reference,
        target: str,
        digest: Digest | None,
        expected: Descriptor | None,
        plain_http: bool | None,
    ) -> Document:
        """The manifest or index that *target*, a tag or a digest, names.

        :param digest: what it must hash to; None: what the registry says, if it does.
        :param expected: what it must be; None: what the registry says it is.
        """
        site = self._site(reference, plain_http)
        url = _url(site, reference, f"manifests/{target}")
        reply = await self._get(site, reference, url, "manifest", target, {"Accept": _ACCEPT})
        body = await self._exchange.body(reply, "manifest", MANIFEST_LIMIT)
        digest = digest or _declared_digest(reply)
        actual = Digest.of(body, digest.algorithm if digest is not None else "sha256")
        if digest is not None and actual != digest:
            raise DigestMismatch(str(digest), str(actual))
        if expected is not None and expected.size != len(body):
            reason = f"it has {len(body)} bytes, not {expected.size}"
            raise MalformedDocument("manifest", reason)
        if expected is None:
            declared = media_type(reply.header("Content-Type"), body)
            expected = Descriptor(declared, actual, len(body))
        parse(expected, body)
        return Document(expected, body)

    async def blob(
        self,
        reference: Reference,
        descriptor: Descriptor,
        offset: int = 0,
        plain_http: bool | None = None,
    ) -> BlobStream:
        """See :class:`ctd.fetch.interfaces.IRegistry`."""
        if not 0 <= offset <= descriptor.size:
            raise InvalidArgument("offset", f"{offset} is not within the blob's {descriptor.size}")
        if offset == descriptor.size:
            # A range must not be empty.
            offset = 0
        site, digest = self._site(reference, plain_http), str(descriptor.digest)
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        url = _url(site, reference, f"blobs/{digest}")
        reply = await self._get(site, reference, url, "blob", digest, headers)
        return opened(self._clock, reply, descriptor, offset)

    async def tags(self, reference: Reference, plain_http: bool | None = None) -> list[str]:
        """See :class:`ctd.fetch.interfaces.IRegistry`."""
        site = self._site(reference, plain_http)
        found: set[str] = set()
        url: Url | None = _url(site, reference, f"tags/list?n={TAGS_PAGE}")
        while url is not None:
            reply = await self._get(site, reference, url, "repository", reference.name)
            page = _tags(await self._exchange.body(reply, "tags", MANIFEST_LIMIT))
            # A page that brings nothing new is the last one, whatever it says.
            url = None if found.issuperset(page) else _following(site, reply)
            found.update(page)
            if len(found) > TAGS_LIMIT:
                raise ResourceExhausted("number of tags", TAGS_LIMIT)
        return sorted(found)

    def _site(self, reference: Reference, plain_http: bool | None) -> Site:
        """Where and how *reference*'s registry is spoken to."""
        plain_is_fine = is_loopback(reference.domain) or reference.domain in self._insecure
        plain = plain_is_fine if plain_http is None else plain_http
        url = Url.parse(f"{'http' if plain else 'https'}://{reference.host}/v2/")
        return Site(reference.domain, url, trusted=plain_is_fine or not plain)

    async def _get(
        self,
        site: Site,
        reference: Reference,
        url: Url,
        what: str,
        name: str,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """A good reply from *site*, authenticated if it asks for that.

        :param what: what a 404 says is not there, under *name*.
        """
        repository = reference.repository
        sent = self._authorizer.known(site, repository)
        reply = await self._exchange.get(url, headers, sent)
        # A challenge from where a redirect led is none of the registry's.
        if reply.status == 401 and reply.url.origin == site.url.origin:
            await self._exchange.drain(reply)
            asked = reply.headers("WWW-Authenticate")
            answer = await self._authorizer.answer(site, repository, asked, sent)
            if answer is None:
                raise Unauthorized(reference.domain, repository, 401)
            reply = await self._exchange.get(url, headers, answer)
        if reply.status in (200, 206):
            return reply
        body = await self._exchange.drain(reply)
        match reply.status:
            case 404:
                raise NotFound(what, name)
            case 401 | 403:
                raise Unauthorized(reference.domain, repository, reply.status)
            case 416:
                raise TransferBroken(name, 0, "the server has fewer bytes of it")
            case status:
                reason = f"HTTP {status}{_code(body)}"
                raise RegistryUnavailable(reply.url.netloc, reason)


def _url(site: Site, reference: Reference, path: str) -> Url:
    return site.url.at(f"/v2/{reference.repository}/{path}")


def _declared_digest(reply: Reply) -> Digest | None:
    """What the registry says the body hashes to, if it says that in words ctd knows."""
    try:
        return Digest.parse(reply.header("Docker-Content-Digest"))
    except InvalidArgument:
        return None


def _tags(body: bytes) -> list[str]:
    try:
        tags = msgspec.json.decode(body, type=_Tags).tags or []
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise MalformedDocument("list of tags", str(error)) from None
    if not all(map(is_tag, tags)):
        raise MalformedDocument("list of tags", "some of them cannot be tags")
    return tags


def _following(site: Site, reply: Reply) -> Url | None:
    """The next page, from the ``Link`` header."""
    matched = _NEXT.search(reply.header("Link"))
    if matched is None:
        return None
    try:
        url = reply.url.redirected(matched[1])
    except UnusableUrl as error:
        raise MalformedDocument("list of tags", f"it goes on at {error}") from None
    if url.origin != site.url.origin:
        raise MalformedDocument("list of tags", "it goes on at another server")
    return url


def _code(body: bytes) -> str:
    """The registry's own code for an error, in parentheses.

    Its message is left out: a registry may quote what it was sent.
    """
    try:
        errors = msgspec.json.decode(body, type=_Errors).errors
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return ""
    code = errors[0].code if errors else ""
    return f" ({code})" if _CODE.fullmatch(code) else ""
