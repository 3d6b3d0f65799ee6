"""The distribution API, spoken to servers in memory that lie and split their bytes."""

from __future__ import annotations

import json

from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectionRefusedError, DNSLookupError
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from ctd.errors import InvalidArgument, NotFound, ResourceExhausted
from ctd.fetch import registry
from ctd.fetch.errors import (
    DigestMismatch,
    MalformedDocument,
    RegistryUnavailable,
    TransferBroken,
    Unauthorized,
)
from ctd.fetch.exchange import BODY_SECONDS, HEAD_SECONDS
from ctd.fetch.interfaces import MANIFEST_LIMIT, IRegistry
from ctd.fetch.reference import Reference
from ctd.model import Descriptor, Digest, MediaType
from tests.unit.fetch.stage import (
    BLOB,
    LAYER,
    MANIFEST,
    MANIFEST_BODY,
    Reply,
    Request,
    Stage,
    collect,
    document,
)

REF = Reference.parse("reg.example/a/b:1")
ORIGIN = "https://reg.example:443"


class RegistryTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.stage = Stage()
        self.fake = self.stage.fake
        self.network = self.stage.network
        self.registry = self.stage.registry

    def resolve(self, ref: Reference = REF, plain_http: bool | None = None) -> Descriptor:
        return self.stage.result(self.registry.resolve(ref, plain_http)).descriptor

    def answer(self, reply: Reply | bytes) -> None:
        """Whatever is asked for, the registry says *reply*."""
        self.fake.change = lambda request, _: reply


class ResolveTests(RegistryTestCase):
    """Names turned into documents."""

    def test_interface(self) -> None:
        """A registry is one."""
        verifyObject(IRegistry, self.registry)

    def test_tag_in_every_split(self) -> None:
        """A tag gives the document whole, however its bytes are split."""
        for split in (1, 2, 7, 1000):
            self.network.split = split
            found = self.stage.result(self.registry.resolve(REF))
            self.assertEqual((found.descriptor, found.body), (MANIFEST, MANIFEST_BODY))

    def test_connection_used_again(self) -> None:
        """Requests one after another share a connection, and closing closes it."""
        for _ in range(3):
            self.resolve()
        (wire,) = self.network.wires
        self.stage.result(self.registry.close())
        self.assertTrue(wire.closed)

    def test_no_timer_left(self) -> None:
        """What has ended and is closed leaves no timer."""
        self.resolve()
        self.stage.result(collect(self.stage.result(self.registry.blob(REF, LAYER))))
        self.stage.result(self.registry.close())
        self.assertEqual(self.stage.clock.getDelayedCalls(), [])

    def test_request(self) -> None:
        """A request names what ctd reads, itself, and no encoding."""
        self.resolve()
        (request,) = self.network.requests
        self.assertEqual(request.target, "/v2/a/b/manifests/1")
        self.assertEqual(request.headers["Host"], "reg.example")
        self.assertIn(MediaType.DOCKER_INDEX, request.headers["Accept"])
        self.assertTrue(request.headers["User-Agent"].startswith("ctd/"))
        self.assertEqual(request.headers["Accept-Encoding"], "identity")
        self.assertNotIn("Authorization", request.headers)

    def test_docker_hub(self) -> None:
        """Docker Hub's API has a host of its own."""
        self.network.servers["https://registry-1.docker.io:443"] = self.fake
        self.fake.documents["library/alpine:latest"] = (MediaType.OCI_MANIFEST, MANIFEST_BODY)
        self.assertEqual(self.resolve(Reference.parse("alpine")), MANIFEST)

    def test_digest_beats_tag(self) -> None:
        """With a digest the tag is only a label."""
        ref = Reference.parse(f"reg.example/a/b:old@{MANIFEST.digest}")
        self.assertEqual(self.resolve(ref), MANIFEST)

    def test_wrong_bytes(self) -> None:
        """A body that does not hash to the digest is refused, with both digests."""
        self.fake.documents[f"a/b:{MANIFEST.digest}"] = (MediaType.OCI_MANIFEST, b"{}")
        with self.assertRaises(DigestMismatch) as caught:
            self.resolve(Reference.parse(f"reg.example/a/b@{MANIFEST.digest}"))
        self.assertEqual(caught.exception.actual, str(Digest.of(b"{}")))

    def test_wrong_declared_digest(self) -> None:
        """A body that is not what the registry says it hashes to is refused."""
        digest = str(Digest.of(b"else"))
        self.answer(Reply(200, MANIFEST_BODY, {"Docker-Content-Digest": digest}))
        with self.assertRaises(DigestMismatch):
            self.resolve()

    def test_sha512(self) -> None:
        """A reference by another algorithm's digest is checked by that algorithm."""
        digest = Digest.of(MANIFEST_BODY, "sha512")
        self.fake.documents[f"a/b:{digest}"] = (MediaType.OCI_MANIFEST, MANIFEST_BODY)
        self.answer(Reply(200, MANIFEST_BODY))
        self.assertEqual(self.resolve(Reference.parse(f"reg.example/a/b@{digest}")).digest, digest)

    def test_media_type_from_the_body(self) -> None:
        """A registry that does not name a media type is believed by the body's."""
        for declared in ({}, {"Content-Type": "application/json; charset=utf-8"}):
            self.answer(Reply(200, MANIFEST_BODY, dict(declared)))
            self.assertEqual(self.resolve(), MANIFEST)

    def test_contradiction(self) -> None:
        """A manifest that the registry calls an index is refused."""
        self.answer(Reply(200, MANIFEST_BODY, {"Content-Type": MediaType.OCI_INDEX}))
        with self.assertRaises(MalformedDocument):
            self.resolve()

    def test_schema_1(self) -> None:
        """Docker's schema 1 is refused by its name."""
        kind = "application/vnd.docker.distribution.manifest.v1+prettyjws"
        self.answer(Reply(200, b'{"schemaVersion": 1}', {"Content-Type": kind}))
        with self.assertRaises(MalformedDocument) as caught:
            self.resolve()
        self.assertIn("schema 1", str(caught.exception))

    def test_too_large(self) -> None:
        """A manifest over the limit is cut off when it passes that."""
        self.network.split = 1 << 20
        self.answer(Reply(200, b" " * (MANIFEST_LIMIT + (4 << 20))))
        with self.assertRaises(ResourceExhausted):
            self.resolve()
        self.assertLess(self.network.delivered, MANIFEST_LIMIT + (2 << 20))
        self.assertTrue(self.network.wires[0].closed)

    def test_manifest(self) -> None:
        """A manifest is got by its descriptor and checked against it."""
        found = self.stage.result(self.registry.manifest(REF, MANIFEST))
        self.assertEqual(found.body, MANIFEST_BODY)
        wrong = Descriptor(MANIFEST.media_type, MANIFEST.digest, MANIFEST.size + 1)
        with self.assertRaises(MalformedDocument):
            self.stage.result(self.registry.manifest(REF, wrong))
        index = Descriptor(MediaType.OCI_INDEX, MANIFEST.digest, MANIFEST.size)
        with self.assertRaises(MalformedDocument):
            self.stage.result(self.registry.manifest(REF, index))

    def test_huge_manifest(self) -> None:
        """A descriptor of a manifest over the limit is refused before anything is asked."""
        huge = Descriptor(MANIFEST.media_type, MANIFEST.digest, MANIFEST_LIMIT + 1)
        with self.assertRaises(ResourceExhausted):
            self.stage.result(self.registry.manifest(REF, huge))
        self.assertEqual(self.network.requests, [])

    def test_index(self) -> None:
        """An index is a document as good as a manifest."""
        index, body = document(MediaType.DOCKER_INDEX, manifests=[])
        self.fake.documents["a/b:1"] = (MediaType.DOCKER_INDEX, body)
        self.assertEqual(self.resolve(), index)


class FailureTests(RegistryTestCase):
    """What each failure is called."""

    def test_status(self) -> None:
        """Each HTTP status has its error."""
        for status, error in (
            (404, NotFound),
            (403, Unauthorized),
            (401, Unauthorized),
            (429, RegistryUnavailable),
            (500, RegistryUnavailable),
            (503, RegistryUnavailable),
            (400, RegistryUnavailable),
            (204, RegistryUnavailable),
        ):
            self.answer(Reply(status))
            with self.assertRaises(error):
                self.resolve()

    def test_code_without_message(self) -> None:
        """The registry's code is told; its message, which may quote secrets, is not."""
        body = {"errors": [{"code": "TOOMANYREQUESTS", "message": "Bearer s3cret"}]}
        self.answer(Reply(429, json.dumps(body).encode()))
        with self.assertRaises(RegistryUnavailable) as caught:
            self.resolve()
        self.assertIn("HTTP 429 (TOOMANYREQUESTS)", str(caught.exception))
        self.assertNotIn("s3cret", str(caught.exception))

    def test_endless_error(self) -> None:
        """The body of an error is read to a limit and then cut off."""
        self.answer(Reply(500, b"x" * (1 << 20)))
        with self.assertRaises(RegistryUnavailable):
            self.resolve()
        self.assertTrue(self.network.wires[0].closed)
        self.assertLess(self.network.delivered, 1 << 18)

    def test_unreachable(self) -> None:
        """Names that do not resolve and ports that refuse are told from one another."""
        for error, words in (
            (DNSLookupError("no"), "its name cannot be resolved"),
            (ConnectionRefusedError(), "connection refused"),
        ):
            self.network.unreachable[ORIGIN] = error
            with self.assertRaises(RegistryUnavailable) as caught:
                self.resolve()
            self.assertEqual(caught.exception.fields, {"host": "reg.example", "reason": words})

    def test_no_http(self) -> None:
        """Bytes that are no HTTP make the registry unavailable."""
        for junk in (b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"\0" * 70000):
            self.answer(junk)
            with self.assertRaises(RegistryUnavailable):
                self.resolve()

    def test_two_lengths(self) -> None:
        """A reply with two lengths is not believed at all."""
        self.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab")
        with self.assertRaises(RegistryUnavailable):
            self.resolve()

    def test_endless_headers(self) -> None:
        """Headers without an end are cut off long before the time is over."""
        self.answer(b"HTTP/1.1 200 OK\r\n" + b"X-A: %s\r\n" % (b"y" * 1000) * 2000)
        with self.assertRaises(RegistryUnavailable):
            self.resolve()
        self.assertLess(self.network.delivered, 1 << 19)

    def test_silence(self) -> None:
        """A server that does not reply, or not to the end, is given up in time."""
        for reply, seconds in (
            (b"", HEAD_SECONDS),
            (Reply(200, MANIFEST_BODY, sent=10), BODY_SECONDS),
        ):
            self.answer(reply)
            asking = self.stage.begin(self.registry.resolve(REF))
            self.stage.wait(seconds - 1)
            self.assertNoResult(asking)
            self.stage.wait(1)
            self.failureResultOf(asking, RegistryUnavailable)
            self.assertTrue(self.network.wires[-1].closed)

    def test_broken_body(self) -> None:
        """A document that breaks off says where it did."""
        self.answer(Reply(200, MANIFEST_BODY, sent=10, close=True))
        with self.assertRaises(RegistryUnavailable) as caught:
            self.resolve()
        self.assertIn("broke off at byte 10", str(caught.exception))

    def test_cancelled(self) -> None:
        """Cancelling, before the reply or in it, raises CancelledError and cuts the connection."""
        for reply in (b"", Reply(200, MANIFEST_BODY, sent=10)):
            self.answer(reply)
            asking = self.stage.begin(self.registry.resolve(REF))
            asking.cancel()
            self.failureResultOf(asking, CancelledError)
            self.stage.settle()
            self.assertTrue(self.network.wires[-1].closed)
            self.assertEqual(self.stage.clock.getDelayedCalls(), [])


class PlainHttpTests(RegistryTestCase):
    """When a registry is spoken to without TLS."""

    def origins(self, ref: str, plain_http: bool | None = None, *insecure: str) -> str:
        stage = Stage(insecure=insecure)
        seen: list[str] = []

        class Any(dict):  # type: ignore[type-arg]
            def __missing__(self, origin: str) -> object:
                seen.append(origin)
                return stage.fake

        stage.network.servers = Any()
        stage.result(stage.registry.resolve(Reference.parse(ref), plain_http))
        return seen[0]

    def test_which(self) -> None:
        """Loopback and insecure registries get plain HTTP, others TLS, and a request decides."""
        for ref, origin in (
            ("localhost/a/b:1", "http://localhost:80"),
            ("localhost:5000/a/b:1", "http://localhost:5000"),
            ("127.1.2.3:5000/a/b:1", "http://127.1.2.3:5000"),
            ("[::1]:5000/a/b:1", "http://::1:5000"),
            ("10.0.0.1:5000/a/b:1", "https://10.0.0.1:5000"),
            ("[fe80::1]/a/b:1", "https://fe80::1:443"),
            ("localhost.example/a/b:1", "https://localhost.example:443"),
        ):
            self.assertEqual(self.origins(ref), origin)
        self.assertEqual(self.origins("localhost/a/b:1", False), "https://localhost:443")
        self.assertEqual(self.origins("x.example/a/b:1", True), "http://x.example:80")
        self.assertEqual(self.origins("x.example/a/b:1", None, "X.example"), "http://x.example:80")
        self.assertEqual(
            self.origins("x.example:5000/a/b:1", None, "x.example"), "https://x.example:5000"
        )


class RedirectTests(RegistryTestCase):
    """Where a registry may send its clients."""

    def redirect(self, *locations: str) -> None:
        """Each request is sent on to the next of *locations*."""
        left = list(locations)

        def change(request: Request, reply: Reply) -> Reply:
            if not left:
                return reply
            return Reply(307, b"go on", {"Location": left.pop(0)})

        self.fake.change = change

    def test_followed(self) -> None:
        """A redirect is followed, relative or to another server over TLS."""
        self.network.servers["https://cdn.example:8443"] = self.fake
        for location in ("/v2/a/b/manifests/1", "https://cdn.example:8443/v2/a/b/manifests/1"):
            self.redirect(location)
            self.assertEqual(self.resolve(), MANIFEST)

    def test_refused(self) -> None:
        """A redirect to plain HTTP, another scheme, or nothing sensible is not followed."""
        for location in (
            "http://reg.example/v2/a/b/manifests/1",
            "file:///etc/passwd",
            "ftp://reg.example/x",
            "https://user:pw@reg.example/x",
            "https://reg.example:99999/x",
            "https://reg.example\\@evil.example/",
            "https://[::1",
            "",
        ):
            self.redirect(location)
            with self.assertRaises(RegistryUnavailable) as caught:
                self.resolve()
            self.assertNotIn("pw", str(caught.exception))

    def test_none_said(self) -> None:
        """A redirect to nowhere is an error."""
        self.answer(Reply(302))
        with self.assertRaises(RegistryUnavailable):
            self.resolve()

    def test_loop(self) -> None:
        """Redirects without an end are given up after a few."""
        self.answer(Reply(302, b"", {"Location": "/again"}))
        with self.assertRaises(RegistryUnavailable):
            self.resolve()
        self.assertEqual(len(self.network.requests), 6)

    def test_range_is_kept(self) -> None:
        """A redirected request for a part of a blob still asks for that part."""
        self.network.servers["https://cdn.example:443"] = self.fake
        self.redirect(f"https://cdn.example/v2/a/b/blobs/{LAYER.digest}?sig=s3cret")
        stream = self.stage.result(self.registry.blob(REF, LAYER, 100))
        self.assertEqual(stream.offset, 100)
        self.assertEqual(self.stage.result(collect(stream)), BLOB[100:])

    def test_signature_is_not_told(self) -> None:
        """An error at the end of a redirect does not tell the URL, which may be a signed one."""
        self.network.servers["https://cdn.example:443"] = lambda request: Reply(500)
        self.redirect("https://cdn.example/x?sig=s3cret")
        with self.assertRaises(RegistryUnavailable) as caught:
            self.resolve()
        self.assertEqual(caught.exception.host, "cdn.example")
        self.assertNotIn("s3cret", repr(caught.exception) + str(caught.exception))


class BlobTests(RegistryTestCase):
    """Blobs, opened."""

    def blob(self, offset: int = 0) -> bytes:
        return self.stage.result(collect(self.stage.result(self.registry.blob(REF, LAYER, offset))))

    def test_in_every_split(self) -> None:
        """A blob comes whole, with a length or in chunks, however it is split."""
        for chunked in (False, True):
            self.fake.change = lambda _, reply, chunked=chunked: (
                setattr(reply, "chunked", chunked) or reply
            )
            for split in (1, 3, 1000, 1 << 20):
                self.network.split = split
                self.assertEqual(self.blob(), BLOB)

    def test_resumed(self) -> None:
        """A blob is resumed at any byte."""
        for offset in (1, 5000, len(BLOB) - 1):
            self.assertEqual(self.blob(offset), BLOB[offset:])

    def test_server_without_ranges(self) -> None:
        """A server that ignores ranges starts at 0, and the stream says so."""
        self.answer(Reply(200, BLOB))
        stream = self.stage.result(self.registry.blob(REF, LAYER, 100))
        self.assertEqual(stream.offset, 0)
        self.assertEqual(self.stage.result(collect(stream)), BLOB)

    def test_at_its_end(self) -> None:
        """From the end of a blob there is no range to ask for: it comes from its start."""
        self.assertEqual(self.blob(len(BLOB)), BLOB)

    def test_beyond_its_end(self) -> None:
        """An offset that no blob of that size has is the caller's mistake."""
        for offset in (-1, len(BLOB) + 1):
            with self.assertRaises(InvalidArgument):
                self.blob(offset)

    def test_empty(self) -> None:
        """An empty blob is a stream without chunks."""
        empty = Descriptor("a/b", Digest.of(b""), 0)
        self.fake.blobs[str(empty.digest)] = b""
        stream = self.stage.result(self.registry.blob(REF, empty))
        self.assertEqual(self.stage.result(collect(stream)), b"")

    def test_missing(self) -> None:
        """A blob that is not there is named by its digest."""
        self.fake.blobs.clear()
        with self.assertRaises(NotFound) as caught:
            self.blob()
        self.assertEqual(caught.exception.fields, {"what": "blob", "name": str(LAYER.digest)})

    def test_wrong_announcement(self) -> None:
        """Another size or range than the descriptor's is refused before a byte is taken."""
        size = len(BLOB)
        for offset, reply in (
            (0, Reply(200, BLOB[:-1])),
            (0, Reply(200, BLOB + b"x")),
            (0, Reply(206, BLOB, {"Content-Range": f"bytes 0-{size - 1}/{size}"})),
            (9, Reply(206, BLOB[9:])),
            (9, Reply(206, BLOB[9:], {"Content-Range": f"bytes 8-{size - 1}/{size}"})),
            (9, Reply(206, BLOB[9:], {"Content-Range": f"bytes 9-{size}/{size}"})),
            (9, Reply(206, BLOB[9:], {"Content-Range": f"bytes 9-{size - 1}/{size + 1}"})),
            (9, Reply(206, BLOB[9:-1], {"Content-Range": f"bytes 9-{size - 1}/{size}"})),
            (9, Reply(206, BLOB[9:], {"Content-Range": "chapters 1-2/3"})),
            (9, Reply(416)),
        ):
            self.answer(reply)
            with self.assertRaises(TransferBroken) as caught:
                self.blob(offset)
            self.assertEqual(caught.exception.digest, str(LAYER.digest))

    def test_unknown_total(self) -> None:
        """A server need not know the whole's size when it sends a part."""
        reply = Reply(206, BLOB[9:], {"Content-Range": f"bytes 9-{len(BLOB) - 1}/*"})
        self.answer(reply)
        self.assertEqual(self.blob(9), BLOB[9:])


class TagsTests(RegistryTestCase):
    """The tags of a repository."""

    def tags(self) -> list[str]:
        return self.stage.result(self.registry.tags(REF))

    def test_sorted(self) -> None:
        """Tags come sorted; no tags are none."""
        self.fake.tags = ["b", "a", "C"]
        self.assertEqual(self.tags(), ["C", "a", "b"])
        self.answer(Reply(200, b'{"tags": null}'))
        self.assertEqual(self.tags(), [])

    def test_pages(self) -> None:
        """All pages are read, until one is the last or brings nothing new."""

        def change(request: Request, reply: Reply) -> Reply:
            last = int(request.query.get("last", ["0"])[0])
            link = {"Link": f'</v2/a/b/tags/list?last={last + 1}>; rel="next"'}
            return Reply(200, b'{"tags": ["t%d"]}' % last, link if last < 3 else {})

        self.fake.change = change
        self.assertEqual(self.tags(), ["t0", "t1", "t2", "t3"])
        self.answer(Reply(200, b'{"tags": ["t"]}', {"Link": "</v2/a/b/tags/list>; rel=next"}))
        self.assertEqual(self.tags(), ["t"])

    def test_elsewhere(self) -> None:
        """A list that goes on at another server, or in plain HTTP, is refused."""
        for link in ("https://evil.example/", "http://reg.example/", "//evil.example/"):
            self.answer(Reply(200, b'{"tags": ["t"]}', {"Link": f'<{link}>; rel="next"'}))
            with self.assertRaises(MalformedDocument):
                self.tags()

    def test_malformed(self) -> None:
        """What is no list of tags is refused."""
        for body in (
            b"",
            b"[]",
            b'{"tags": [1]}',
            b'{"tags": ["a b"]}',
            b'{"tags": [""]}',
            b"\xff",
        ):
            self.answer(Reply(200, body))
            with self.assertRaises(MalformedDocument):
                self.tags()

    def test_too_many(self) -> None:
        """Tags without an end are given up at a limit."""
        self.patch(registry, "TAGS_LIMIT", 3)
        self.fake.tags = ["a", "b", "c", "d"]
        with self.assertRaises(ResourceExhausted):
            self.tags()

    def test_missing(self) -> None:
        """A repository that is not there is not found."""
        self.answer(Reply(404))
        with self.assertRaises(NotFound):
            self.tags()
