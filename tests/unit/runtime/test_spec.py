"""OCI configurations as values; tests/integration/test_spec.py runs them."""

from __future__ import annotations

import json
import unittest
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ctd.errors import InvalidArgument
from ctd.model import ProcessDefaults, User
from ctd.runtime import capabilities
from ctd.runtime.host import Device, Host, host
from ctd.runtime.interfaces import ContainerRequest, ExecRequest, Resources, UserMount
from ctd.runtime.limits import linux_resources
from ctd.runtime.spec import container_spec, environment, exec_process, hostname

RUN = "0123456789ab"
IMAGE = ProcessDefaults(
    args=("/entry", "serve"),
    entrypoint=("/entry",),
    env=("PATH=/opt/bin", "LANG=C"),
    cwd="/srv",
)


def request(**fields: Any) -> ContainerRequest:
    return ContainerRequest(**{"namespace": "default", "id": "web", "image": "alpine", **fields})


def spec(
    defaults: ProcessDefaults = IMAGE,
    user: User = User(),  # noqa: B008
    host: Host = Host(),  # noqa: B008
    **fields: Any,
) -> dict[str, Any]:
    return container_spec(request(**fields), defaults, user, RUN, host)


def destinations(config: dict[str, Any]) -> list[str]:
    return [mount["destination"] for mount in config["mounts"]]


def mount_at(config: dict[str, Any], destination: str) -> dict[str, Any]:
    (found,) = [m for m in config["mounts"] if m["destination"] == destination]
    return dict(found)


class CommandTests(unittest.TestCase):
    """Entrypoint and command, as Docker joins them."""

    def args(self, defaults: ProcessDefaults = IMAGE, **fields: Any) -> list[str]:
        return list(spec(defaults, **fields)["process"]["args"])

    def test_image_alone(self) -> None:
        """Without args the image's entrypoint and command are run."""
        self.assertEqual(self.args(), ["/entry", "serve"])

    def test_args(self) -> None:
        """Args stand in for the image's command, not for its entrypoint."""
        self.assertEqual(self.args(args=("check",)), ["/entry", "check"])

    def test_entrypoint(self) -> None:
        """A new entrypoint makes nothing of the image's command."""
        self.assertEqual(self.args(entrypoint=("/other",)), ["/other"])

    def test_entrypoint_and_args(self) -> None:
        """A new entrypoint and args are both used."""
        self.assertEqual(self.args(entrypoint=("/other",), args=("x",)), ["/other", "x"])

    def test_no_entrypoint(self) -> None:
        """An entrypoint of one empty string takes the image's away."""
        self.assertEqual(self.args(entrypoint=("",), args=("/bin/sh",)), ["/bin/sh"])

    def test_nothing(self) -> None:
        """With nothing to run the args are what is wrong."""
        for fields in ({}, {"args": ()}, {"entrypoint": ()}, {"entrypoint": ("",)}):
            with self.subTest(fields), self.assertRaises(InvalidArgument) as caught:
                self.args(ProcessDefaults(), **fields)
            self.assertEqual(caught.exception.field, "args")

    def test_empty_executable(self) -> None:
        """An empty executable's name is refused."""
        with self.assertRaises(InvalidArgument):
            self.args(ProcessDefaults(), args=("", "x"))


class EnvironmentTests(unittest.TestCase):
    """What a first process finds in its environment, and where it starts."""

    def env(self, defaults: ProcessDefaults = IMAGE, **fields: Any) -> dict[str, str]:
        entries = spec(defaults, User(home="/home/me"), **fields)["process"]["env"]
        return dict(entry.split("=", 1) for entry in entries)

    def test_presets(self) -> None:
        """PATH, HOME and HOSTNAME are there without an image."""
        env = self.env(ProcessDefaults(args=("x",)))
        self.assertEqual(env["HOME"], "/home/me")
        self.assertEqual(env["HOSTNAME"], "web")
        self.assertIn("/usr/bin", env["PATH"].split(":"))
        self.assertNotIn("TERM", env)

    def test_image_over_presets(self) -> None:
        """The image's variables stand in for the presets of that name."""
        self.assertEqual(self.env()["PATH"], "/opt/bin")

    def test_request_over_image(self) -> None:
        """The request's variables stand in for all others, and may have equals signs."""
        env = self.env(env=("LANG=a=b", "HOME=/x", "LANG=c=d"))
        self.assertEqual((env["LANG"], env["HOME"]), ("c=d", "/x"))

    def test_terminal(self) -> None:
        """A process on a terminal has TERM."""
        self.assertEqual(self.env(terminal=True)["TERM"], "xterm")
        self.assertEqual(self.env(terminal=True, env=("TERM=vt100",))["TERM"], "vt100")

    def test_malformed_in_image(self) -> None:
        """What is no variable in an image's environment is left out."""
        env = self.env(ProcessDefaults(args=("x",), env=("NONE", "=x", "", "A=")))
        self.assertEqual(env["A"], "")
        self.assertNotIn("NONE", env)

    def test_nul_in_image(self) -> None:
        """A NUL in an image's configuration is refused."""
        for defaults in (
            ProcessDefaults(args=("x\0",)),
            ProcessDefaults(args=("x",), env=("A=\0",)),
            ProcessDefaults(args=("x",), cwd="/\0"),
        ):
            with self.subTest(defaults), self.assertRaises(InvalidArgument) as caught:
                self.env(defaults)
            self.assertEqual(caught.exception.field, "image")

    def test_cwd(self) -> None:
        """The working directory is absolute, whatever the image says."""
        for given_, expected in (("srv", "/srv"), ("", "/"), ("/a/../b/", "/b"), ("//x", "/x")):
            config = spec(ProcessDefaults(args=("x",), cwd=given_))
            self.assertEqual(config["process"]["cwd"], expected)
        self.assertEqual(spec(cwd="/tmp")["process"]["cwd"], "/tmp")

    @given(st.lists(st.lists(st.from_regex(r"\A[AB]{1,2}=[^\0]{0,2}\Z"), max_size=4), max_size=3))
    def test_last_wins(self, layers: list[list[str]]) -> None:
        """Every name is there once, with the value it was given last."""
        expected = dict(entry.split("=", 1) for layer in layers for entry in layer)
        merged = [entry.split("=", 1) for entry in environment(*layers)]
        self.assertEqual(len(merged), len(expected))
        self.assertEqual(dict(merged), expected)


class PrivilegeTests(unittest.TestCase):
    """What a container may do."""

    def caps(self, *words: str, **fields: Any) -> list[str]:
        sets = spec(capabilities=words, **fields)["process"]["capabilities"]
        self.assertEqual(sets["bounding"], sets["effective"])
        self.assertEqual(sets["bounding"], sets["permitted"])
        self.assertEqual((sets["inheritable"], sets["ambient"]), ([], []))
        return list(sets["bounding"])

    def test_default(self) -> None:
        """Fourteen capabilities, no inheritable and no ambient ones, no new privileges."""
        self.assertEqual(set(self.caps()), set(capabilities.DEFAULT))
        self.assertEqual(len(self.caps()), 14)
        self.assertIs(spec()["process"]["noNewPrivileges"], True)

    def test_spellings(self) -> None:
        """A capability is named with or without CAP_ and a sign, in any case."""
        for word in ("NET_ADMIN", "+NET_ADMIN", "cap_net_admin", "+Cap_Net_Admin"):
            self.assertIn("CAP_NET_ADMIN", self.caps(word))
        for word in ("-KILL", "-cap_kill"):
            self.assertNotIn("CAP_KILL", self.caps(word))

    def test_all(self) -> None:
        """ALL is what the daemon has, less what is taken away by name."""
        few = Host(capabilities=("CAP_KILL", "CAP_CHOWN", "CAP_BPF"))
        self.assertEqual(self.caps("ALL", "-CHOWN", host=few), ["CAP_KILL", "CAP_BPF"])

    def test_none_but(self) -> None:
        """-ALL leaves what is added by name."""
        self.assertEqual(self.caps("-ALL"), [])
        self.assertEqual(self.caps("NET_RAW", "-all"), ["CAP_NET_RAW"])

    def test_unknown(self) -> None:
        """An unknown name is answered with the nearest one."""
        with self.assertRaises(InvalidArgument) as caught:
            self.caps("KILL", "NET_ADMN")
        self.assertEqual(caught.exception.field, "capabilities[1]")
        self.assertIn("NET_ADMIN", caught.exception.reason)

    def test_contradiction(self) -> None:
        """A capability cannot be added and taken away."""
        with self.assertRaises(InvalidArgument):
            self.caps("KILL", "-KILL")

    def test_not_available(self) -> None:
        """What the daemon has not got is left out of the defaults and refused by name."""
        few = Host(capabilities=("CAP_KILL",))
        self.assertEqual(self.caps(host=few), ["CAP_KILL"])
        with self.assertRaises(InvalidArgument) as caught:
            self.caps("SYS_TIME", host=few)
        self.assertIn("CAP_SYS_TIME", caught.exception.reason)

    def test_privileged(self) -> None:
        """A privileged container has all that the daemon has, and sees the host's devices."""
        device = Device("/dev/fuse", "c", 10, 229, 0o666)
        config = spec(privileged=True, host=Host(("CAP_BPF", "CAP_KILL"), devices=(device,)))
        linux = config["linux"]
        self.assertEqual(config["process"]["capabilities"]["bounding"], ["CAP_KILL", "CAP_BPF"])
        self.assertIs(config["process"]["noNewPrivileges"], False)
        self.assertEqual((linux["maskedPaths"], linux["readonlyPaths"]), ([], []))
        self.assertEqual(linux["resources"]["devices"], [{"allow": True, "access": "rwm"}])
        self.assertEqual(linux["devices"][0]["path"], "/dev/fuse")
        self.assertIn("rw", mount_at(config, "/sys")["options"])

    def test_doors(self) -> None:
        """What leads into the kernel is masked or read-only, and /sys read-only."""
        config = spec()
        self.assertIn("/proc/kcore", config["linux"]["maskedPaths"])
        self.assertIn("/proc/sys", config["linux"]["readonlyPaths"])
        self.assertIn("ro", mount_at(config, "/sys")["options"])

    def test_devices(self) -> None:
        """All devices are denied first; disks are never allowed to be opened."""
        rules = spec()["linux"]["resources"]["devices"]
        self.assertEqual(rules[0], {"allow": False, "access": "rwm"})
        self.assertEqual([r["access"] for r in rules if r.get("type") == "b"], ["m"])
        self.assertIn((1, 3), [(r.get("major"), r.get("minor")) for r in rules])

    def test_user(self) -> None:
        """The group is among the additional groups, once."""
        user = spec(user=User(1000, 100, (5, 100, 7)))["process"]["user"]
        self.assertEqual(user, {"uid": 1000, "gid": 100, "additionalGids": [100, 5, 7]})

    def test_oom(self) -> None:
        """The daemon's protection from the OOM killer is not passed on, its exposure is."""
        self.assertEqual(spec(host=Host(oom_score_adj=-900))["process"]["oomScoreAdj"], 0)
        self.assertEqual(spec(host=Host(oom_score_adj=300))["process"]["oomScoreAdj"], 300)


class SurroundingsTests(unittest.TestCase):
    """Namespaces, names, limits."""

    def namespaces(self, **fields: Any) -> dict[str, str | None]:
        return {n["type"]: n.get("path") for n in spec(**fields)["linux"]["namespaces"]}

    def test_netns(self) -> None:
        """The network namespace is a new one, the host's or that at a path."""
        own = {"pid": None, "ipc": None, "uts": None, "mount": None}
        self.assertEqual(self.namespaces(), {**own, "network": None})
        self.assertEqual(self.namespaces(netns="host"), own)
        self.assertEqual(self.namespaces(netns="/run/n"), {**own, "network": "/run/n"})

    def test_cgroup_namespace(self) -> None:
        """There is a cgroup namespace with cgroup v2 alone."""
        self.assertIn("cgroup", self.namespaces(host=Host(unified=True)))

    def test_host_network(self) -> None:
        """In the host's network its names are known, unless the client mounts its own."""
        here = Host(resolver_files=("/etc/hosts", "/etc/resolv.conf"))
        self.assertNotIn("/etc/hosts", destinations(spec(host=here)))
        self.assertIn("/etc/hosts", destinations(spec(host=here, netns="host")))
        own = UserMount("/etc/hosts", source="/my/hosts")
        config = spec(host=here, netns="host", mounts=(own,))
        self.assertEqual(mount_at(config, "/etc/hosts")["source"], "/my/hosts")

    def test_hostname(self) -> None:
        """The host's name is the request's, or a valid one made of the id."""
        self.assertEqual(hostname(request(hostname="db")), "db")
        self.assertEqual(hostname(request(id="a_b.c")), "a-b.c")
        self.assertEqual(hostname(request(id="a" * 70)), "a" * 63)
        self.assertEqual(hostname(request(id="a_.-")), "a")

    def test_names(self) -> None:
        """The cgroup is the run's, the root the bundle's, annotations the client's."""
        config = spec(annotations={"a": "b"}, read_only=True)
        self.assertEqual(config["linux"]["cgroupsPath"], f"/ctd/{RUN}")
        self.assertEqual(config["root"], {"path": "rootfs", "readonly": True})
        self.assertEqual(config["annotations"], {"a": "b"})
        self.assertNotIn("rlimits", config["process"])
        json.dumps(config)

    def test_resources(self) -> None:
        """Limits are in the units of OCI configurations, and what is not limited is not there."""
        self.assertEqual(linux_resources(Resources()), {})
        limits = Resources(1 << 27, 1 << 28, 0.5, 512, "0-1", 64)
        self.assertEqual(
            linux_resources(limits),
            {
                "memory": {"limit": 1 << 27, "swap": 1 << 28},
                "cpu": {"quota": 50_000, "period": 100_000, "shares": 512, "cpus": "0-1"},
                "pids": {"limit": 64},
            },
        )

    def test_this_machine(self) -> None:
        """The facts of this machine make a privileged container's configuration."""
        here = host()
        config = spec(privileged=True, host=here)
        self.assertIn("/dev/null", [d["path"] for d in config["linux"]["devices"]])
        self.assertIn("CAP_KILL", config["process"]["capabilities"]["bounding"])


class MountTests(unittest.TestCase):
    """What a client mounts."""

    def test_bind(self) -> None:
        """A bind mount is recursive and private unless it says otherwise."""
        config = spec(mounts=(UserMount("/data", source="/srv", options=("ro",)),))
        found = mount_at(config, "/data")
        self.assertEqual(found["type"], "bind")
        self.assertEqual(found["options"], ["rbind", "ro", "rprivate"])
        config = spec(mounts=(UserMount("/data/", source="/s", options=("bind", "rshared")),))
        self.assertEqual(mount_at(config, "/data")["options"], ["bind", "rshared"])
        self.assertEqual(config["linux"]["rootfsPropagation"], "rshared")

    def test_tmpfs(self) -> None:
        """A tmpfs holds no devices, programs or setuid files unless it says so."""
        config = spec(mounts=(UserMount("/t", "tmpfs", options=("size=1m", "exec")),))
        found = mount_at(config, "/t")
        self.assertEqual(found["options"], ["nosuid", "nodev", "size=1m", "exec"])
        self.assertEqual(found["source"], "tmpfs")

    def test_replaces(self) -> None:
        """A mount stands in for the default one there and for those below it."""
        config = spec(mounts=(UserMount("/dev", source="/dev"),))
        self.assertEqual(mount_at(config, "/dev")["source"], "/dev")
        self.assertFalse([d for d in destinations(config) if d.startswith("/dev/")])
        config = spec(mounts=(UserMount("/dev/shm", "tmpfs"),))
        self.assertIn("/dev/pts", destinations(config))
        self.assertEqual(mount_at(config, "/dev/shm")["source"], "tmpfs")

    def test_order(self) -> None:
        """Parents are mounted before what lies below them, others as they were given."""
        given_ = [UserMount(d, "tmpfs") for d in ("/a/b/c", "/z", "/a", "/a/b")]
        self.assertEqual(
            destinations(spec(mounts=tuple(given_)))[-4:], ["/z", "/a", "/a/b", "/a/b/c"]
        )

    def test_refused(self) -> None:
        """What cannot be mounted is refused, by its place in the request."""
        for mounts, field in (
            ([UserMount("data", source="/x")], "mounts[0].destination"),
            ([UserMount("/", source="/x")], "mounts[0].destination"),
            ([UserMount("/a/../b", source="/x")], "mounts[0].destination"),
            ([UserMount("/a//b", source="/x")], "mounts[0].destination"),
            ([UserMount("/a", source="x")], "mounts[0].source"),
            ([UserMount("/a")], "mounts[0].source"),
            ([UserMount("/a", "tmpfs"), UserMount("/a/", "tmpfs")], "mounts[1].destination"),
        ):
            with self.subTest(mounts), self.assertRaises(InvalidArgument) as caught:
                spec(mounts=tuple(mounts))
            self.assertEqual(caught.exception.field, field)


class ExecTests(unittest.TestCase):
    """The processes executed later."""

    def process(self, as_user: User | None = None, **fields: Any) -> dict[str, Any]:
        base = spec(user=User(1000, 100, home="/home/me"), terminal=True)["process"]
        wanted = {"namespace": "default", "container": "web", "id": "sh", "args": ("sh",)}
        return exec_process(base, ExecRequest(**{**wanted, **fields}), as_user)

    def test_as_first(self) -> None:
        """What is not said is as for the first process, but for the terminal."""
        base = spec(user=User(1000, 100, home="/home/me"), terminal=True)["process"]
        self.assertEqual(self.process(), {**base, "args": ["sh"], "terminal": False})

    def test_said(self) -> None:
        """Arguments, environment, directory and terminal are the request's."""
        process = self.process(args=("a", "b"), env=("LANG=x", "N=1"), cwd="/tmp", terminal=True)
        self.assertEqual((process["args"], process["cwd"]), (["a", "b"], "/tmp"))
        self.assertIs(process["terminal"], True)
        self.assertLessEqual({"LANG=x", "N=1", "PATH=/opt/bin"}, set(process["env"]))

    def test_user(self) -> None:
        """Another user has its own numbers and HOME; the same one keeps HOME."""
        process = self.process(User(0, 0, (), "/root"), user="root")
        self.assertEqual(process["user"], {"uid": 0, "gid": 0, "additionalGids": [0]})
        self.assertIn("HOME=/root", process["env"])
        self.assertIn("HOME=/home/me", self.process(User(1000, 0, (), "/q"), user="me:0")["env"])
        self.assertIn("HOME=/x", self.process(User(0), user="0", env=("HOME=/x",))["env"])

    def test_capabilities(self) -> None:
        """Capabilities are added to the container's, or taken away; new privileges never."""
        process = self.process(capabilities=("NET_ADMIN", "-KILL"))
        expected = set(capabilities.DEFAULT) - {"CAP_KILL"} | {"CAP_NET_ADMIN"}
        self.assertEqual(set(process["capabilities"]["effective"]), expected)
        self.assertIs(process["noNewPrivileges"], True)

    def test_sparse_base(self) -> None:
        """A client's own bundle may say nothing but a command."""
        wanted = ExecRequest("default", "web", "sh", ("sh",), capabilities=("KILL",))
        process = exec_process({"args": ["x"], "cwd": "/"}, wanted, User(5, 6))
        self.assertEqual(process["capabilities"]["bounding"], ["CAP_KILL"])
        self.assertEqual(process["user"]["uid"], 5)

    def test_base_is_kept(self) -> None:
        """The container's own process object is not changed."""
        base = spec()["process"]
        before = json.dumps(base)
        wanted = ExecRequest("d", "web", "sh", ("sh",), env=("A=1",), capabilities=("-ALL",))
        exec_process(base, wanted, User(5))
        self.assertEqual(json.dumps(base), before)

    def test_refused(self) -> None:
        """No command, and one too large for the shim's protocol, are refused."""
        for args in ((), ("",), ("x", *["\x01" * 100_000] * 4)):
            with self.assertRaises(InvalidArgument) as caught:
                self.process(args=args)
            self.assertEqual(caught.exception.field, "args")
