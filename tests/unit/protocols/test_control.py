"""Every method against fake parts, and the document that describes them."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import attrs
import msgspec
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from ctd.events.interfaces import IJournal
from ctd.images.interfaces import IImages
from ctd.model import Digest
from ctd.protocols.control.content import READ
from ctd.protocols.control.daemon import IDaemon
from ctd.protocols.jsonrpc import CODES
from ctd.protocols.lines import LINE_LIMIT
from ctd.runtime.interfaces import (
    ContainerRequest,
    ExecRequest,
    IContainers,
    IProcesses,
    Resources,
    Stdio,
    UserMount,
)
from ctd.storage.interfaces import IContentStore, IGarbageCollector, IngestInfo, ISnapshotter
from tests.unit.protocols.fakes import AT, NOW, FakeDaemon
from tests.unit.protocols.rig import Rig


class MethodTests(SynchronousTestCase):
    """What each method asks of the parts, and what it answers."""

    def setUp(self) -> None:
        self.rig = Rig()
        self.client = self.rig.client()
        self.addCleanup(self.client.hang_up)

    def kind(self, method: str, params: Any = None) -> str:
        kind: str = self.client.error(method, params)["data"]["kind"]
        return kind

    def test_fakes(self) -> None:
        """The fakes are what the parts' interfaces say."""
        for interface, fake in (
            (IDaemon, FakeDaemon()),
            (IContainers, self.rig.containers),
            (IProcesses, self.rig.processes),
            (IImages, self.rig.images),
            (IJournal, self.rig.journal),
            (IContentStore, self.rig.content),
            (ISnapshotter, self.rig.native),
            (IGarbageCollector, self.rig.collector),
        ):
            verifyObject(interface, fake)

    def test_info(self) -> None:
        """daemon.info has the daemon's facts, its stalls, and counts over all namespaces."""
        self.rig.started("a")
        self.client.call("containers.create", {"image": "x", "namespace": "other"})
        self.rig.images.add("x", "other")
        self.rig.content.add(b"x")
        info = self.client.call("daemon.info")
        self.assertEqual(info["stalls"], {"longest": 0.25, "over_limit": 1})
        self.assertEqual(info["snapshotters"], ["native", "overlayfs"])
        self.assertEqual(
            info["counts"],
            {"containers": 2, "running": 1, "images": 1, "blobs": 1, "snapshots": 0},
        )

    def test_create_smallest(self) -> None:
        """Only what the container is made of must be given; an id is made up."""
        made = self.client.call("containers.create", {"image": "alpine"})
        self.assertRegex(made["id"], "^[0-9a-f]{12}$")
        self.assertEqual(
            self.rig.containers.requests,
            [ContainerRequest(namespace="default", id=made["id"], image="alpine")],
        )
        self.assertEqual(made["stdio"], {"stdin": "null", "stdout": "null", "stderr": "null"})
        self.assertEqual(made["created_at"], NOW)
        self.assertIsNone(made["exit_status"])

    def test_create_full(self) -> None:
        """Every parameter reaches the runtime."""
        params = {
            "namespace": "n",
            "id": "web",
            "image": "alpine",
            "args": ["sleep", "1"],
            "entrypoint": [],
            "env": ["A=1", "B="],
            "cwd": "/tmp",
            "user": "1:2",
            "hostname": "h",
            "terminal": True,
            "mounts": [{"destination": "/m", "source": "/s", "options": ["ro"]}],
            "netns": "/run/netns/x",
            "resources": {"memory": 1 << 30, "cpus": 0.5, "pids": 10, "cpuset_cpus": "0-1"},
            "read_only": True,
            "capabilities": ["NET_ADMIN", "-KILL"],
            "privileged": True,
            "labels": {"a": "b"},
            "annotations": {"c": "d"},
            "runtime": "crun",
            "snapshotter": "native",
            "stdio": {"stdout": "file:///x?format=cri", "stdin": "fifo:///in", "stderr": "attach"},
        }
        self.client.call("containers.create", params)
        self.assertEqual(
            self.rig.containers.requests,
            [
                ContainerRequest(
                    namespace="n",
                    id="web",
                    image="alpine",
                    args=("sleep", "1"),
                    entrypoint=(),
                    env=("A=1", "B="),
                    cwd="/tmp",
                    user="1:2",
                    hostname="h",
                    terminal=True,
                    mounts=(UserMount("/m", "bind", "/s", ("ro",)),),
                    netns="/run/netns/x",
                    resources=Resources(memory=1 << 30, cpus=0.5, pids=10, cpuset_cpus="0-1"),
                    read_only=True,
                    capabilities=("NET_ADMIN", "-KILL"),
                    privileged=True,
                    labels={"a": "b"},
                    annotations={"c": "d"},
                    runtime="crun",
                    snapshotter="native",
                    stdio=Stdio("fifo:///in", "file:///x?format=cri", "attach"),
                )
            ],
        )
        self.assertEqual(
            set(params), {f.name for f in attrs.fields(ContainerRequest)} - {"rootfs", "bundle"}
        )

    def test_env_mapping(self) -> None:
        """An environment may be an object; names that cannot be are refused."""
        self.client.call("containers.create", {"rootfs": "/r", "env": {"A": "1=2", "B": ""}})
        self.assertEqual(self.rig.containers.requests[0].env, ("A=1=2", "B="))
        for env in (["A"], ["=x"], {"": "x"}, {"A=B": "x"}):
            self.assertEqual(
                self.kind("containers.create", {"rootfs": "/r", "env": env}), "invalid_argument"
            )

    def test_one_source(self) -> None:
        """Exactly one of image, rootfs and bundle is given."""
        for params in ({}, {"image": "x", "rootfs": "/r"}, {"rootfs": "/r", "bundle": "/b"}):
            self.assertEqual(self.kind("containers.create", params), "invalid_argument")

    def test_limits_are_positive(self) -> None:
        """A limit of nothing is refused, as no limit is said otherwise."""
        error = self.client.error("containers.create", {"image": "x", "resources": {"memory": 0}})
        self.assertEqual(error["data"]["field"], "resources.memory")

    def test_container_life(self) -> None:
        """A container is made, started, listed, signalled, waited for and deleted."""
        call = self.client.call
        call("containers.create", {"id": "web", "image": "x"})
        self.assertEqual(
            self.kind("containers.create", {"id": "web", "image": "x"}), "already_exists"
        )
        self.assertEqual(call("containers.start", {"id": "web"})["status"], "running")
        self.assertEqual(self.kind("containers.start", {"id": "web"}), "failed_precondition")
        self.assertEqual(call("containers.get", {"id": "web"})["status"], "running")
        self.assertEqual(call("containers.kill", {"id": "web"}), {})
        call("containers.kill", {"id": "web", "signal": "RTMIN+1", "all": True})
        call("containers.kill", {"id": "web", "signal": 9})
        self.assertEqual(
            self.rig.containers.signals, [("web", 15, False), ("web", 35, True), ("web", 9, False)]
        )
        self.assertEqual(
            self.kind("containers.kill", {"id": "web", "signal": "X"}), "invalid_argument"
        )
        self.assertEqual(self.kind("containers.delete", {"id": "web"}), "failed_precondition")
        self.rig.containers.end("web", 137)
        self.assertEqual(
            call("containers.wait", {"id": "web"}),
            {"exit_status": 137, "exit_reason": "exited", "exited_at": NOW},
        )
        self.assertEqual(call("containers.delete", {"id": "web", "force": True}), {})
        self.assertEqual(self.kind("containers.get", {"id": "web"}), "not_found")

    def test_namespaces(self) -> None:
        """A container is seen in its own namespace, or with all_namespaces."""
        self.client.call("containers.create", {"id": "a", "image": "x", "namespace": "n"})
        self.assertEqual(self.kind("containers.get", {"id": "a"}), "not_found")
        self.assertEqual(self.client.call("containers.list")["items"], [])
        (item,) = self.client.call("containers.list", {"all_namespaces": True})["items"]
        self.assertEqual(item["namespace"], "n")
        self.rig.images.add("i", "m")
        self.assertEqual(
            self.client.call("namespaces.list")["items"],
            [
                {"name": "default", "containers": 0, "images": 0},
                {"name": "m", "containers": 0, "images": 1},
                {"name": "n", "containers": 1, "images": 0},
            ],
        )

    def test_pages(self) -> None:
        """Pages together have everything once, though things come and go between them."""
        for number in range(7):
            self.client.call("containers.create", {"id": f"c{number}", "image": "x"})
        first = self.client.call("containers.list", {"limit": 3})
        self.assertEqual([c["id"] for c in first["items"]], ["c0", "c1", "c2"])
        self.client.call("containers.delete", {"id": "c2"})
        self.client.call("containers.create", {"id": "c00", "image": "x"})
        second = self.client.call("containers.list", {"limit": 4, "cursor": first["next"]})
        self.assertEqual([c["id"] for c in second["items"]], ["c3", "c4", "c5", "c6"])
        self.assertIsNone(second["next"])
        for cursor in ("x", "", "AAAA", base64.b64encode(b"[1]").decode(), "\xe9"):
            self.assertEqual(self.kind("containers.list", {"cursor": cursor}), "invalid_argument")

    def test_large_pages(self) -> None:
        """A page is cut before it would not fit a line, whatever the limit says."""
        labels = {"x": "y" * 500_000}
        for number in range(10):
            self.client.call(
                "containers.create", {"id": f"c{number}", "image": "x", "labels": labels}
            )
        seen, cursor, pages = [], None, 0
        while True:
            page = self.client.call("containers.list", {"cursor": cursor})
            self.assertLess(len(json.dumps(page)), LINE_LIMIT)
            seen += [c["id"] for c in page["items"]]
            cursor, pages = page["next"], pages + 1
            if cursor is None:
                break
        self.assertEqual(seen, [f"c{n}" for n in range(10)])
        self.assertGreater(pages, 1)

    def test_exec(self) -> None:
        """Every parameter of exec reaches the runtime; an id is made up."""
        params = {
            "container": "web",
            "args": ["sh"],
            "env": {"A": "1"},
            "cwd": "/",
            "user": "0",
            "terminal": True,
            "capabilities": ["+CHOWN"],
            "stdio": {"stdin": "attach"},
        }
        process = self.client.call("processes.exec", params)
        self.assertRegex(process["id"], "^[0-9a-f]{12}$")
        self.assertEqual(
            self.rig.processes.requests,
            [
                ExecRequest(
                    namespace="default",
                    container="web",
                    id=process["id"],
                    args=("sh",),
                    env=("A=1",),
                    cwd="/",
                    user="0",
                    terminal=True,
                    capabilities=("+CHOWN",),
                    stdio=Stdio(stdin="attach"),
                )
            ],
        )
        error = self.client.error("processes.exec", {"container": "web", "args": []})
        self.assertEqual(error["data"]["field"], "args")

    def test_process_life(self) -> None:
        """Processes are listed with init first, and init is meant where no id is given."""
        for id in ("b", "init", "a"):
            self.client.call("processes.exec", {"container": "w", "id": id, "args": ["x"]})
        page = self.client.call("processes.list", {"container": "w"})
        self.assertEqual([p["id"] for p in page["items"]], ["init", "a", "b"])
        self.assertEqual(self.client.call("processes.get", {"container": "w"})["id"], "init")
        self.client.call("processes.kill", {"container": "w", "id": "a", "signal": "hup"})
        self.assertEqual(self.rig.processes.signals, [("a", 1)])
        self.client.call("processes.close_stdin", {"container": "w", "id": "a"})
        self.assertEqual(self.rig.processes.closed, ["a"])
        self.assertEqual(
            self.client.call("processes.wait", {"container": "w", "id": "a"})["exit_status"], 3
        )
        self.assertEqual(self.kind("processes.delete", {"container": "w"}), "invalid_argument")
        self.assertEqual(
            self.kind("processes.delete", {"container": "w", "id": "init"}), "failed_precondition"
        )
        self.client.call("processes.delete", {"container": "w", "id": "a"})
        self.assertEqual(self.kind("processes.get", {"container": "w", "id": "a"}), "not_found")

    def test_images(self) -> None:
        """Images are pulled, listed, tagged, looked into and deleted."""
        call = self.client.call
        image = call(
            "images.pull",
            {"ref": "alpine", "platform": "aarch64", "snapshotter": "native", "plain_http": True},
        )
        self.assertEqual(image["target"]["platform"], "linux/amd64")
        self.assertEqual(image["labels"], {"a": "b"})
        pulled = self.rig.images.pulls[0]
        self.assertEqual(str(pulled["platform"]), "linux/arm64")
        self.assertEqual((pulled["snapshotter"], pulled["http"]), ("native", True))
        self.assertEqual(self.kind("images.pull", {"ref": "nope"}), "not_found")
        self.assertEqual(
            self.kind("images.pull", {"ref": "alpine", "platform": "a/b/c/d"}), "invalid_argument"
        )
        call("images.tag", {"source": "alpine", "target": "a:2"})
        self.assertEqual([i["name"] for i in call("images.list")["items"]], ["a:2", "alpine"])
        self.assertEqual(call("images.get", {"ref": "a:2"})["name"], "a:2")
        self.assertEqual(call("images.config", {"ref": "alpine"})["config"]["os"], "linux")
        self.assertEqual(call("images.delete", {"ref": "alpine"}), {})
        self.assertEqual(self.kind("images.delete", {"ref": "alpine"}), "not_found")

    def test_content(self) -> None:
        """Blobs are listed, read in parts, deleted; ingests are listed and aborted."""
        data = bytes(range(256)) * (READ // 256) + b"tail"
        digest = str(self.rig.content.add(data))
        call = self.client.call
        self.assertEqual(call("content.info", {"digest": digest})["size"], len(data))
        self.assertEqual([b["digest"] for b in call("content.list")["items"]], [digest])
        first = call("content.read", {"digest": digest})
        second = call("content.read", {"digest": digest, "offset": READ})
        self.assertEqual([first["eof"], second["eof"]], [False, True])
        read = base64.b64decode(first["data"]) + base64.b64decode(second["data"])
        self.assertEqual(read, data)
        end = call("content.read", {"digest": digest, "offset": len(data)})
        self.assertEqual((end["data"], end["eof"]), ("", True))
        self.assertEqual(
            self.kind("content.read", {"digest": digest, "offset": len(data) + 1}),
            "invalid_argument",
        )
        self.assertEqual(
            self.kind("content.read", {"digest": digest, "length": READ + 1}), "invalid_argument"
        )
        self.assertEqual(self.kind("content.info", {"digest": "md5:00"}), "invalid_argument")
        call("content.delete", {"digest": digest})
        self.assertEqual(self.kind("content.delete", {"digest": digest}), "not_found")
        self.rig.content.left["r"] = IngestInfo("r", 1, 2, Digest.of(b""), AT)
        self.assertEqual([i["offset"] for i in call("content.active")["items"]], [1])
        call("content.abort", {"ref": "r"})
        self.assertEqual(self.kind("content.abort", {"ref": "r"}), "not_found")

    def test_snapshots(self) -> None:
        """Snapshots of the default or the named snapshotter are listed and removed."""
        call = self.client.call
        for snapshotter in (self.rig.overlay, self.rig.native):
            self.successResultOf(_deferred(snapshotter.prepare("default", "k", labels={"a": "b"})))
            self.successResultOf(_deferred(snapshotter.prepare("", "layer")))
        (item,) = call("snapshots.list")["items"]
        self.assertEqual((item["key"], item["kind"]), ("k", "active"))
        self.assertEqual(item["created_at"], "2026-01-02T00:00:00.000000Z")
        self.assertEqual(len(call("snapshots.list", {"all_namespaces": True})["items"]), 2)
        self.assertEqual(call("snapshots.info", {"key": "k"})["labels"], {"a": "b"})
        self.assertEqual(call("snapshots.usage", {"key": "k"}), {"size": 4096, "inodes": 1})
        self.assertEqual(
            call("snapshots.mounts", {"key": "k"})["mounts"],
            [{"type": "bind", "source": "/k", "options": ["rbind"], "target": ""}],
        )
        call("snapshots.remove", {"key": "k", "snapshotter": "native"})
        self.assertEqual(
            self.kind("snapshots.info", {"key": "k", "snapshotter": "native"}), "not_found"
        )
        call("snapshots.info", {"key": "k"})
        self.assertEqual(self.kind("snapshots.list", {"snapshotter": "zfs"}), "not_found")

    def test_gc(self) -> None:
        """A dry run removes nothing; the answer names the first thousand and counts all."""
        for params in ({"dry_run": True}, {}):
            done = self.client.call("gc.run", params)
            self.assertEqual(len(done["removed"]), 1000)
            self.assertEqual((done["removed_count"], done["kept"], done["size"]), (1500, 5, 15000))
        self.assertEqual(self.client.call("gc.run")["removed_count"], 0)


class EventTests(SynchronousTestCase):
    """The journal over the wire."""

    def setUp(self) -> None:
        self.rig = Rig()
        self.client = self.rig.client()
        self.addCleanup(self.client.hang_up)

    def test_list(self) -> None:
        """Pages of events go on from next, given as cursor or since."""
        for topic in ("a.x", "b.x", "a.y", "a.z"):
            self.rig.journal.emit(topic)
        page = self.client.call("events.list", {"limit": 2, "topics": ["a.*"]})
        self.assertEqual([e["topic"] for e in page["items"]], ["a.x", "a.y"])
        for name in ("cursor", "since"):
            rest = self.client.call("events.list", {name: page["next"]})
            self.assertEqual([e["seq"] for e in rest["items"]], [4])
        self.assertIsNone(rest["next"])
        self.rig.journal.oldest = 3
        page = self.client.call("events.list", {"since": 1})
        self.assertEqual(page["trimmed"], {"since": 1, "oldest": 3})

    def test_subscribe(self) -> None:
        """A subscriber hears where it begins, then everything after that, until it cancels."""
        self.rig.journal.emit("before")
        self.client.send("events.subscribe", id="s")
        (first,) = self.client.read()
        self.assertEqual(first["method"], "event")
        self.assertEqual(first["params"], {"call": "s", "subscribed": {"since": 1}})
        self.rig.journal.emit("after")
        self.rig.journal.emit("elsewhere", "other")
        (note,) = self.client.read()
        self.assertEqual(note["method"], "event")
        self.assertEqual(note["params"]["call"], "s")
        self.assertEqual(
            note["params"]["event"],
            {
                "seq": 2,
                "at": NOW,
                "namespace": "default",
                "topic": "after",
                "subject": "s",
                "data": {"n": 1},
            },
        )
        self.client.send("rpc.cancel", {"call": "s"}, id=2)
        replies = {r["id"]: r for r in self.client.read()}
        self.assertEqual(replies["s"]["error"]["data"]["kind"], "cancelled")
        self.assertEqual(self.rig.journal.followers, 0)

    def test_subscribe_since(self) -> None:
        """With since, what was missed comes first; all namespaces if asked for."""
        for namespace in ("default", "other", "default"):
            self.rig.journal.emit("x", namespace)
        self.client.send("events.subscribe", {"since": 1, "all_namespaces": True})
        self.assertEqual([n["params"]["event"]["seq"] for n in self.client.read()[1:]], [2, 3])

    def test_trimmed(self) -> None:
        """A subscriber whose events are no longer kept is told before the first event."""
        for _ in range(4):
            self.rig.journal.emit("x")
        self.rig.journal.oldest = 3
        self.client.send("events.subscribe", {"since": 0, "topics": ["x"]})
        notes = [n["params"] for n in self.client.read()]
        self.assertEqual(notes[0]["subscribed"], {"since": 0})
        self.assertEqual(notes[1]["trimmed"], {"since": 0, "oldest": 3})


class DiscoverTests(SynchronousTestCase):
    """The OpenRPC document."""

    def setUp(self) -> None:
        self.rig = Rig()
        self.document = self.rig.client().call("rpc.discover")

    def test_methods(self) -> None:
        """It has every method of the table, in order, and nothing else."""
        names = [m["name"] for m in self.document["methods"]]
        self.assertEqual(names, sorted(names))
        self.assertEqual(names, [m.name for m in self.rig.table])
        self.assertIn("containers.create", names)
        self.assertIn("rpc.discover", names)

    def test_shape(self) -> None:
        """Each method has what OpenRPC asks for, and says something about itself."""
        self.assertRegex(self.document["openrpc"], r"^1\.\d+\.\d+$")
        self.assertTrue(self.document["info"]["title"])
        self.assertTrue(self.document["info"]["version"])
        for method in self.document["methods"]:
            self.assertEqual(method["paramStructure"], "by-name")
            self.assertTrue(method["summary"].endswith((".", "be.")), method["name"])
            names = [p["name"] for p in method["params"]]
            self.assertEqual(len(names), len(set(names)))
            self.assertIn("namespace", names, method["name"])
            required = [p["required"] for p in method["params"]]
            self.assertEqual(required, sorted(required, reverse=True))
            for descriptor in [*method["params"], method["result"]]:
                self.assertIsInstance(descriptor["schema"], dict)
                self.assertTrue(descriptor["name"])
            for example in method["examples"]:
                self.assertLessEqual({p["name"] for p in example["params"]}, set(names))

    def test_references(self) -> None:
        """Every reference leads somewhere, and every schema is used."""
        used = set(_references(self.document))
        for reference in used:
            target: Any = self.document
            for step in reference.removeprefix("#/").split("/"):
                target = target[step]
        schemas = {f"#/components/schemas/{n}" for n in self.document["components"]["schemas"]}
        self.assertEqual(schemas - used, set())
        errors = self.document["components"]["errors"]
        self.assertEqual({k: e["code"] for k, e in errors.items()}, CODES)

    def test_examples(self) -> None:
        """Each example is accepted as parameters and as result, and each method has one."""
        for method in self.rig.table:
            if method.name not in ("rpc.discover", "events.subscribe"):
                self.assertTrue(method.examples, method.name)
            for example in method.examples:
                msgspec.convert(example.params, method.params)
                result = msgspec.convert(example.result, method.result)
                self.assertEqual(set(msgspec.to_builtins(result)), set(example.result), method.name)

    def test_constraints(self) -> None:
        """Schemas say what the server checks: kinds, defaults, patterns, descriptions."""
        (create,) = (m for m in self.document["methods"] if m["name"] == "containers.create")
        params = {p["name"]: p for p in create["params"]}
        self.assertEqual(params["namespace"]["schema"]["default"], "default")
        self.assertIn("pattern", params["namespace"]["schema"])
        self.assertIn("description", params["image"])
        schemas = self.document["components"]["schemas"]
        self.assertEqual(schemas["Mount"]["required"], ["destination"])
        self.assertFalse(schemas["Mount"]["additionalProperties"])


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "$ref":
                yield inner
            else:
                yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)


def _deferred(work: Any) -> Any:
    from twisted.internet.defer import Deferred

    return Deferred.fromCoroutine(work)
