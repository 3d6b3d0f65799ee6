"""Fetching from Debian's docker-registry: open, with passwords, with tokens, and over TLS."""

from __future__ import annotations

import base64
import datetime
import hashlib
import ipaddress
import json
import os
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from twisted.internet import reactor
from twisted.internet.ssl import Certificate as TrustedCertificate
from twisted.internet.ssl import trustRootFromCertificates
from twisted.trial.unittest import TestCase
from twisted.web.client import BrowserLikePolicyForHTTPS

from ctd.errors import NotFound
from ctd.fetch.connections import Connections, SocketEndpoints
from ctd.fetch.credentials import StaticCredentials
from ctd.fetch.documents import parse
from ctd.fetch.errors import RegistryUnavailable, TransferBroken, Unauthorized
from ctd.fetch.interfaces import Index, Manifest
from ctd.fetch.platforms import choose
from ctd.fetch.reference import Reference
from ctd.fetch.registry import Registry
from ctd.model import Descriptor, Digest, MediaType, Platform
from tests.integration.image_builder import write_layout
from tests.integration.lying_registry import LyingRegistry, cut_at
from tests.integration.registry import Registry as Server

USER, PASSWORD = "user", "pass:word"
#: PASSWORD as htpasswd files have it.
BCRYPTED = "$2b$04$Nc.nxLMzZW2wq2/DT0iJuOog4Gb05TTx9v4Eg7KtTC.MsErZ5833."
BLOB_SIZE = 48 << 20


class Certificate:
    """A certificate for 127.0.0.1 that vouches for itself, and its key, as PEM files."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.key = rsa.generate_private_key(65537, 2048)
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ctd test")])
        now = datetime.datetime.now(datetime.UTC)
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self.key.public_key())
            .serial_number(1)
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([address]), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        self.file, self.key_file = directory / "certificate.pem", directory / "key.pem"
        self.file.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        self.key_file.write_bytes(
            self.key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.TraditionalOpenSSL,
                serialization.NoEncryption(),
            )
        )

    def token(self, **claims: Any) -> str:
        """A signed JSON web token."""

        def encoded(data: bytes) -> str:
            return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

        der = self.certificate.public_bytes(serialization.Encoding.DER)
        header = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(der).decode()]}
        signed = ".".join(encoded(json.dumps(part).encode()) for part in (header, claims))
        signature = self.key.sign(signed.encode(), PKCS1v15(), hashes.SHA256())
        return f"{signed}.{encoded(signature)}"


class TokenServer:
    """Gives tokens to USER, and to others if *anonymous*.

    :ivar asked: the query and the Authorization of each request.
    """

    def __init__(self, certificate: Certificate) -> None:
        self.asked: list[tuple[dict[str, list[str]], str | None]] = []
        self.anonymous = True
        outer = self

        class Requests(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                query = parse_qs(urlsplit(self.path).query)
                authorization = self.headers.get("Authorization")
                outer.asked.append((query, authorization))
                basic = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
                if authorization != f"Basic {basic}" and not outer.anonymous:
                    self.answer(401, {})
                    return
                _, name, actions = query["scope"][0].split(":")
                access = {"type": "repository", "name": name, "actions": actions.split(",")}
                now = int(time.time())
                claims = {"iss": "tests", "sub": "", "aud": query["service"][0], "jti": "1"}
                times = {"iat": now, "nbf": now - 10, "exp": now + 300}
                token = certificate.token(**claims, **times, access=[access])
                self.answer(200, {"token": token, "expires_in": 300})

            def answer(self, status: int, document: object) -> None:
                body = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Requests)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/token"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Guarded:
    """Another docker-registry on the storage of an open one.

    :param settings: more of its configuration, YAML.
    """

    def __init__(self, directory: Path, storage: Path, settings: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        directory.mkdir(parents=True, exist_ok=True)
        config = directory / "config.yml"
        config.write_text(
            "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
            f"storage: {{filesystem: {{rootdirectory: {storage}}}}}\n"
            + settings.replace("ADDRESS", self.address)
        )
        program = shutil.which("docker-registry") or "/usr/bin/docker-registry"
        with (directory / "log").open("wb") as log:
            self._process = subprocess.Popen([program, "serve", config], stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(self.address.split(":"), 1).close()
            except OSError:
                assert time.monotonic() < deadline, (directory / "log").read_text()
                assert self._process.poll() is None, (directory / "log").read_text()
                time.sleep(0.02)
            else:
                return

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


class World:
    """All servers the tests speak to, and what is in them."""

    def __init__(self, directory: Path, open_registry: Server, layout: Path) -> None:
        self.open = open_registry.address
        open_registry.push(layout, "fetch/image:1")
        open_registry.push(layout, "fetch/image:other")
        plain = write_layout(directory / "plain", compression="gzip")
        open_registry.push(plain, "fetch/docker:1", "--format", "v2s2")
        self.body = os.urandom(BLOB_SIZE)
        self.blob = Descriptor(MediaType.OCI_LAYER, Digest.of(self.body), BLOB_SIZE)
        self._upload("fetch/image", self.body)
        self.arm = self._index()
        storage = open_registry._directory / "storage"
        self.certificate = Certificate(directory / "certificate")
        self.tokens = TokenServer(self.certificate)
        htpasswd = directory / "htpasswd"
        htpasswd.write_text(f"{USER}:{BCRYPTED}\n")
        pem, key = self.certificate.file, self.certificate.key_file
        http = 'http: {addr: "ADDRESS"}\n'
        self._servers = [
            Guarded(
                directory / "basic",
                storage,
                http + f"auth: {{htpasswd: {{realm: test, path: {htpasswd}}}}}\n",
            ),
            Guarded(
                directory / "bearer",
                storage,
                http + f"auth: {{token: {{realm: '{self.tokens.url}', service: reg, "
                f"issuer: tests, rootcertbundle: {pem}}}}}\n",
            ),
            Guarded(
                directory / "tls",
                storage,
                f'http: {{addr: "ADDRESS", tls: {{certificate: {pem}, key: {key}}}}}\n',
            ),
        ]
        self.basic, self.bearer, self.tls = (server.address for server in self._servers)

    def close(self) -> None:
        for server in self._servers:
            server.close()
        self.tokens.close()

    def _put(self, path: str, body: bytes, media_type: str) -> None:
        url = path if path.startswith("http") else f"http://{self.open}/v2/{path}"
        request = urllib.request.Request(url, data=body, method="PUT")
        request.add_header("Content-Type", media_type)
        urllib.request.urlopen(request, timeout=30).close()

    def _upload(self, repository: str, body: bytes) -> None:
        url = f"http://{self.open}/v2/{repository}/blobs/uploads/"
        with urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=30) as done:
            place = done.headers["Location"]
        joint = "&" if "?" in place else "?"
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        self._put(f"{place}{joint}digest={digest}", body, "application/octet-stream")

    def _index(self) -> str:
        """Push an index with the image under two platforms, and an attestation."""
        request = urllib.request.Request(f"http://{self.open}/v2/fetch/image/manifests/1")
        request.add_header("Accept", MediaType.OCI_MANIFEST)
        with urllib.request.urlopen(request, timeout=30) as reply:
            manifest = reply.read()
        digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
        entry = {"mediaType": MediaType.OCI_MANIFEST, "digest": digest, "size": len(manifest)}
        platforms = [("unknown", "unknown"), ("linux", "arm64"), ("linux", "amd64")]
        entries = [
            {**entry, "platform": {"os": os_, "architecture": architecture}}
            for os_, architecture in platforms
        ]
        index = {"schemaVersion": 2, "mediaType": MediaType.OCI_INDEX, "manifests": entries}
        self._put("fetch/image/manifests/index", json.dumps(index).encode(), MediaType.OCI_INDEX)
        return digest


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory, registry: Server, layout: Path
) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("fetch"), registry, layout)
    yield world
    world.close()


class FetchTestCase(TestCase):
    """A registry client on the real reactor."""

    timeout = 60
    world: World

    @pytest.fixture(autouse=True)
    def _world(self, world: World) -> None:
        self.world = world
        world.tokens.asked.clear()
        world.tokens.anonymous = True

    def client(self, *known: str, connections: Connections | None = None) -> Registry:
        """A client that has credentials for *known*, and is closed at the end."""
        pairs = dict.fromkeys(known, (USER, PASSWORD))
        connections = connections or Connections(reactor)
        client = Registry(reactor, connections, StaticCredentials(pairs))  # type: ignore[arg-type]
        self.addCleanup(self.close, client)
        return client

    async def close(self, client: Registry) -> None:
        await client.close()

    def reference(self, address: str, name: str = "fetch/image:1") -> Reference:
        return Reference.parse(f"{address}/{name}")


async def read(client: Registry, reference: Reference, blob: Descriptor, offset: int = 0) -> bytes:
    stream = await client.blob(reference, blob, offset)
    assert stream.offset == offset
    async with stream:
        return b"".join([chunk async for chunk in stream])


class OpenTests(FetchTestCase):
    """A registry that everybody may read."""

    async def test_image(self) -> None:
        """An image's manifest, configuration and layers come as they were pushed."""
        client, reference = self.client(), self.reference(self.world.open)
        document = await client.resolve(reference)
        manifest = parse(document.descriptor, document.body)
        assert isinstance(manifest, Manifest)
        for blob in (manifest.config, *manifest.layers):
            body = await read(client, reference, blob)
            self.assertEqual(Digest.of(body), blob.digest)

    async def test_docker_format(self) -> None:
        """An image in Docker's format is one as well."""
        client = self.client()
        document = await client.resolve(self.reference(self.world.open, "fetch/docker:1"))
        self.assertEqual(document.descriptor.media_type, MediaType.DOCKER_MANIFEST)
        self.assertIsInstance(parse(document.descriptor, document.body), Manifest)

    async def test_index(self) -> None:
        """An index leads to the manifest of a platform."""
        client, reference = self.client(), self.reference(self.world.open, "fetch/image:index")
        document = await client.resolve(reference)
        index = parse(document.descriptor, document.body)
        assert isinstance(index, Index)
        chosen = choose(index, Platform.parse("linux/arm64"))
        manifest = await client.manifest(reference, chosen)
        self.assertEqual(str(manifest.descriptor.digest), self.world.arm)

    async def test_by_digest(self) -> None:
        """A digest names its manifest."""
        client = self.client()
        name = f"fetch/image@{self.world.arm}"
        document = await client.resolve(self.reference(self.world.open, name))
        self.assertEqual(str(document.descriptor.digest), self.world.arm)

    async def test_resumed(self) -> None:
        """A large blob comes whole, and from any byte."""
        client, reference = self.client(), self.reference(self.world.open)
        for offset in (0, 1, BLOB_SIZE // 2 + 3, BLOB_SIZE - 1):
            body = await read(client, reference, self.world.blob, offset)
            self.assertEqual(body, self.world.body[offset:])

    async def test_left_and_resumed(self) -> None:
        """A stream that is left in the middle is gone on with from there."""
        client, reference = self.client(), self.reference(self.world.open)
        begin = b""
        async with await client.blob(reference, self.world.blob) as stream:
            async for chunk in stream:
                begin += chunk
                if len(begin) > 4 << 20:
                    break
        end = await read(client, reference, self.world.blob, len(begin))
        self.assertEqual(begin + end, self.world.body)

    async def test_tags(self) -> None:
        """The tags are those that were pushed."""
        tags = await self.client().tags(self.reference(self.world.open))
        self.assertEqual(tags, ["1", "index", "other"])

    async def test_missing(self) -> None:
        """Tags, repositories and blobs that are not there are not found."""
        client = self.client()
        for name in ("fetch/image:no", "fetch/no:1"):
            with self.assertRaises(NotFound):
                await client.resolve(self.reference(self.world.open, name))
        nothing = Descriptor("a/b", Digest.of(b"nothing"), 7)
        with self.assertRaises(NotFound):
            await client.blob(self.reference(self.world.open), nothing)

    async def test_nobody_there(self) -> None:
        """A port where nobody listens makes the registry unavailable."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
        with self.assertRaises(RegistryUnavailable) as caught:
            await self.client().resolve(self.reference(address))
        self.assertEqual(caught.exception.reason, "connection refused")

    async def test_cut(self) -> None:
        """A body that breaks off breaks the transfer at that byte."""
        lying = LyingRegistry([self.world.body])
        self.addCleanup(lying.close)
        lying.send = cut_at(0.5)
        reference = Reference.parse(lying.image)
        with self.assertRaises(TransferBroken) as caught:
            await read(self.client(), reference, self.world.blob)
        self.assertEqual(caught.exception.offset, BLOB_SIZE // 2)


class AccessTests(FetchTestCase):
    """Registries that want to know who asks."""

    async def fetch(self, address: str, *known: str) -> None:
        client, reference = self.client(*known), self.reference(address)
        document = await client.resolve(reference)
        self.assertEqual(str(document.descriptor.digest), self.world.arm)
        self.assertEqual(await read(client, reference, self.world.blob, 7), self.world.body[7:])
        self.assertEqual(await client.tags(reference), ["1", "index", "other"])

    async def test_password(self) -> None:
        """A registry with passwords is read by those who have one."""
        await self.fetch(self.world.basic, self.world.basic)
        with self.assertRaises(Unauthorized):
            await self.fetch(self.world.basic)

    async def test_token(self) -> None:
        """A registry with tokens is read with one, which all requests share."""
        await self.fetch(self.world.bearer)
        ((query, authorization),) = self.world.tokens.asked
        self.assertEqual(query, {"service": ["reg"], "scope": ["repository:fetch/image:pull"]})
        self.assertIsNone(authorization)

    async def test_token_for_a_password(self) -> None:
        """A token server that wants a password gets that of its registry."""
        self.world.tokens.anonymous = False
        await self.fetch(self.world.bearer, self.world.bearer)
        with self.assertRaises(Unauthorized):
            await self.fetch(self.world.bearer)


class TlsTests(FetchTestCase):
    """A registry over TLS."""

    async def test_trusted(self) -> None:
        """A registry whose certificate is trusted is read, large blobs too, and left cleanly."""
        pem = self.world.certificate.file.read_bytes()
        trusted = trustRootFromCertificates([TrustedCertificate.loadPEM(pem)])
        endpoints = SocketEndpoints(reactor, BrowserLikePolicyForHTTPS(trustRoot=trusted))
        client = self.client(connections=Connections(reactor, endpoints))
        reference = self.reference(self.world.tls)
        await client.resolve(reference, plain_http=False)
        stream = await client.blob(reference, self.world.blob, plain_http=False)
        async with stream:
            body = b"".join([chunk async for chunk in stream])
        self.assertEqual(body, self.world.body)
        # Cut in the middle: trial complains of connections that stay.
        async with await client.blob(reference, self.world.blob, plain_http=False) as stream:
            await stream.__anext__()

    async def test_not_trusted(self) -> None:
        """A registry whose certificate nobody vouches for is unavailable, and which is told."""
        with self.assertRaises(RegistryUnavailable) as caught:
            await self.client().resolve(self.reference(self.world.tls), plain_http=False)
        self.assertEqual(caught.exception.reason, "TLS: certificate verify failed")

    async def test_no_tls_there(self) -> None:
        """A registry without TLS that is asked for it is unavailable."""
        with self.assertRaises(RegistryUnavailable) as caught:
            await self.client().resolve(self.reference(self.world.open), plain_http=False)
        self.assertIn("TLS", caught.exception.reason)
