"""What is refused of a request before anything is done."""

from __future__ import annotations

import math
import unittest
from typing import Any

from ctd.errors import InvalidArgument
from ctd.runtime.checks import check_container, check_exec
from ctd.runtime.interfaces import ContainerRequest, ExecRequest, Resources, Stdio, UserMount


def container(**fields: Any) -> None:
    check_container(
        ContainerRequest(**{"namespace": "default", "id": "web", "image": "alpine", **fields})
    )


def execute(**fields: Any) -> None:
    wanted = {"namespace": "default", "container": "web", "id": "sh", "args": ("sh",)}
    check_exec(ExecRequest(**{**wanted, **fields}))


def tmpfs(**fields: Any) -> tuple[UserMount, ...]:
    return (UserMount(**{"destination": "/t", "type": "tmpfs", **fields}),)


class ContainerTests(unittest.TestCase):
    """:func:`check_container`."""

    def test_accepted(self) -> None:
        """What can be asked for is accepted."""
        for fields in (
            {},
            {"image": None, "rootfs": "/srv/root"},
            {"image": None, "bundle": "/srv/bundle", "terminal": True, "labels": {"a": ""}},
            {"id": "a" * 76, "namespace": "A_.-9", "hostname": "a-b.c"},
            {"args": ("", "x"), "env": ("A=", "B=="), "cwd": "/", "user": "1000:100"},
            {"netns": "host"},
            {"netns": "/run/netns/x"},
            {"mounts": (UserMount("/d/", source="/d", options=("ro",)), *tmpfs())},
            {"resources": Resources(6 << 20, 6 << 20, 0.01, 2, "0,2-3", 1)},
            {"capabilities": ("all", "-cap_kill"), "privileged": True},
            {"stdio": Stdio("fifo:///a", "file:///b?format=cri&max_size=9", "attach")},
            {"annotations": {"k": "v" * 10_000}, "runtime": "crun", "snapshotter": "native"},
        ):
            with self.subTest(fields):
                container(**fields)

    def test_refused(self) -> None:
        """Every field that cannot be used is refused by its name, with a reason."""
        for field, fields in (
            ("id", {"id": ""}),
            ("id", {"id": "a" * 77}),
            ("id", {"id": "a/b"}),
            ("id", {"id": ".a"}),
            ("id", {"id": "a\n"}),
            ("id", {"id": "é"}),
            ("namespace", {"namespace": "../x"}),
            ("image", {"image": None}),
            ("image", {"image": ""}),
            ("image", {"rootfs": "/x"}),
            ("image", {"rootfs": "/x", "bundle": "/y"}),
            ("image", {"image": "a\0"}),
            ("rootfs", {"image": None, "rootfs": "x"}),
            ("bundle", {"image": None, "bundle": "/x\0"}),
            ("args[1]", {"args": ("x", "\0")}),
            ("args[0]", {"args": ("x" * (128 << 10),)}),
            ("args[0]", {"args": ("\ud800",)}),
            ("args", {"args": ("x" * 100_000,) * 11}),
            ("entrypoint[0]", {"entrypoint": ("\0",)}),
            ("env[0]", {"env": ("A",)}),
            ("env[1]", {"env": ("A=1", "=x")}),
            ("env[0]", {"env": ("A=\0",)}),
            ("cwd", {"cwd": "tmp"}),
            ("cwd", {"cwd": ""}),
            ("cwd", {"cwd": "/" + "x" * 4096}),
            ("user", {"user": "x" * 257}),
            ("hostname", {"hostname": ""}),
            ("hostname", {"hostname": "-a"}),
            ("hostname", {"hostname": "a b"}),
            ("hostname", {"hostname": "a" * 65}),
            ("netns", {"netns": "bridge"}),
            ("netns", {"netns": ""}),
            ("mounts", {"mounts": tmpfs() * 1001}),
            ("mounts[1].destination", {"mounts": tmpfs() * 2}),
            ("mounts[0].destination", {"mounts": tmpfs(destination="/a\0")}),
            ("mounts[0].type", {"mounts": tmpfs(type="")}),
            ("mounts[0].type", {"mounts": tmpfs(type="a/b")}),
            ("mounts[0].source", {"mounts": tmpfs(type="bind", source="x")}),
            ("mounts[0].options[0]", {"mounts": tmpfs(options=("",))}),
            ("resources.memory", {"resources": Resources(memory=4096)}),
            ("resources.memory", {"resources": Resources(memory=1 << 63)}),
            ("resources.memory_swap", {"resources": Resources(memory_swap=1 << 30)}),
            ("resources.memory_swap", {"resources": Resources(1 << 30, 1 << 29)}),
            ("resources.cpus", {"resources": Resources(cpus=0)}),
            ("resources.cpus", {"resources": Resources(cpus=math.nan)}),
            ("resources.cpus", {"resources": Resources(cpus=math.inf)}),
            ("resources.cpu_shares", {"resources": Resources(cpu_shares=1)}),
            ("resources.cpuset_cpus", {"resources": Resources(cpuset_cpus="0-")}),
            ("resources.cpuset_cpus", {"resources": Resources(cpuset_cpus="0\n")}),
            ("resources.pids", {"resources": Resources(pids=-1)}),
            ("capabilities[0]", {"capabilities": ("NOPE",)}),
            ("capabilities[0]", {"capabilities": ("",)}),
            ("capabilities[0]", {"capabilities": ("--KILL",)}),
            ("capabilities[1]", {"capabilities": ("KILL", "-KILL")}),
            ("capabilities", {"capabilities": ("KILL",) * 101}),
            ("labels", {"labels": {"": "x"}}),
            ("labels.a", {"labels": {"a": "x" * 4096}}),
            ("annotations.a", {"annotations": {"a": "\0"}}),
            ("annotations", {"annotations": {str(n): "x" * 60_000 for n in range(20)}}),
            ("runtime", {"runtime": ""}),
            ("snapshotter", {"snapshotter": "\0"}),
            ("stdio.stdin", {"stdio": Stdio(stdin="file:///x")}),
            ("stdio.stdout", {"stdio": Stdio(stdout="fifo://x")}),
            ("stdio.stderr", {"stdio": Stdio(stderr="file:///x?format=xml")}),
        ):
            with self.subTest(field, **fields), self.assertRaises(InvalidArgument) as caught:
                container(**fields)
            self.assertEqual(caught.exception.field, field)
            self.assertGreater(len(caught.exception.reason), 8)
            self.assertLess(len(caught.exception.reason), 500)

    def test_bundle(self) -> None:
        """With a bundle, what its config.json says cannot be asked for as well."""
        for field, value in (
            ("args", ("x",)),
            ("env", ("A=1",)),
            ("mounts", tmpfs()),
            ("netns", "host"),
            ("resources", Resources(pids=5)),
            ("privileged", True),
            ("annotations", {"a": "b"}),
        ):
            with self.subTest(field), self.assertRaises(InvalidArgument) as caught:
                container(image=None, bundle="/b", **{field: value})
            self.assertEqual(caught.exception.field, field)


class ExecTests(unittest.TestCase):
    """:func:`check_exec`."""

    def test_accepted(self) -> None:
        """What can be asked for is accepted."""
        for fields in (
            {},
            {"env": ("A=1",), "cwd": "/", "user": "root", "terminal": True},
            {"capabilities": ()},
            {"capabilities": ("-ALL", "KILL"), "stdio": Stdio("attach", "attach", "attach")},
        ):
            with self.subTest(fields):
                execute(**fields)

    def test_refused(self) -> None:
        """Every field that cannot be used is refused by its name."""
        for field, fields in (
            ("namespace", {"namespace": ""}),
            ("container", {"container": "a/b"}),
            ("id", {"id": "../x"}),
            ("args", {"args": ()}),
            ("args", {"args": ("",)}),
            ("args[0]", {"args": ("\0",)}),
            ("env[0]", {"env": ("A",)}),
            ("cwd", {"cwd": "x"}),
            ("user", {"user": "\0"}),
            ("capabilities[0]", {"capabilities": ("KIL",)}),
            ("stdio.stdin", {"stdio": Stdio(stdin="x")}),
        ):
            with self.subTest(field, **fields), self.assertRaises(InvalidArgument) as caught:
                execute(**fields)
            self.assertEqual(caught.exception.field, field)
