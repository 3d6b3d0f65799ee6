"""Options and the parameters they become."""

from __future__ import annotations

import argparse
import os
import tempfile
import unittest
from pathlib import Path
from typing import Any

from ctd.cli.arguments import container_params, parse_size
from ctd.cli.errors import CommandFailed, InvalidOption
from ctd.cli.run import create_options


def params(*argv: str, **environ: str) -> dict[str, Any]:
    """What ``ctd create ARGV`` asks for, without the id."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    create_options(parser)
    found = container_params(parser.parse_args(argv), "x", environ)
    assert found.pop("id") == "x"
    return found


class ContainerParamsTests(unittest.TestCase):
    def test_nothing_but_an_image(self) -> None:
        """What was not asked for is left to the daemon."""
        self.assertEqual(params("alpine"), {"image": "alpine", "netns": "new"})

    def test_command(self) -> None:
        """Everything after the image is the command, whatever it looks like."""
        for command in (["ls", "-l"], ["--", "x"], ["-e", "A=B"], ["--help"], [""]):
            self.assertEqual(params("-e", "K=V", "alpine", *command)["args"], command)

    def test_environment(self) -> None:
        """A name alone takes the caller's value, and is left out if there is none."""
        found = params("-e", "A=1=2", "-e", "B", "-e", "C", "-e", "D=", "i", B="b")
        self.assertEqual(found["env"], ["A=1=2", "B=b", "D="])
        with self.assertRaises(InvalidOption):
            params("-e", "=x", "i")

    def test_env_file(self) -> None:
        """Files come before -e; comments and empty lines are left out."""
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "env")
            path.write_text("# comment\n\nA=1 \nB\n  C=#3\n")
            found = params("-e", "A=2", "--env-file", str(path), "i", B="b")
        self.assertEqual(found["env"], ["A=1 ", "B=b", "C=#3", "A=2"])
        with self.assertRaisesRegex(CommandFailed, "No such file"):
            params("--env-file", str(path), "i")

    def test_volumes(self) -> None:
        """SRC:DST is a bind mount; a relative source is below the working directory."""
        self.assertEqual(
            params("-v", "/a:/b:ro", "-v", "./c:/d", "i")["mounts"],
            [
                {"type": "bind", "source": "/a", "destination": "/b", "options": ["rbind", "ro"]},
                {
                    "type": "bind",
                    "source": f"{Path.cwd()}/c",
                    "destination": "/d",
                    "options": ["rbind", "rw"],
                },
            ],
        )

    def test_wrong_volumes(self) -> None:
        """What is no volume is an error that shows it."""
        for wrong in ("/a", ":/b", "/a:", "/a:/b:rx", "/a:/b:ro:x", "name:/b"):
            with self.subTest(volume=wrong), self.assertRaises(InvalidOption):
                params("-v", wrong, "i")

    def test_mounts(self) -> None:
        """--mount has docker's keys, for bind and tmpfs."""
        found = params(
            *("--mount", "type=bind,source=/a,target=/b,readonly,bind-propagation=rshared"),
            *("--mount", "type=tmpfs,dst=/t,tmpfs-size=64m,tmpfs-mode=1770"),
            "i",
        )["mounts"]
        self.assertEqual(found[0]["options"], ["rbind", "ro", "rshared"])
        self.assertEqual((found[0]["source"], found[0]["destination"]), ("/a", "/b"))
        self.assertEqual(
            found[1]["options"],
            ["nosuid", "nodev", "noexec", "rw", "size=67108864", "mode=1770"],
        )

    def test_wrong_mounts(self) -> None:
        """What is no mount is an error that shows it."""
        for wrong in (
            "type=volume,dst=/b",
            "src=/a",
            "dst=/b",
            "src=/a,dst=/b,x=y",
            "",
            "type=bind",
        ):
            with self.subTest(mount=wrong), self.assertRaises(InvalidOption):
                params("--mount", wrong, "i")
        with self.assertRaisesRegex(InvalidOption, "tmpfs-size"):
            params("--mount", "src=/a,dst=/b,tmpfs-size=1m", "i")

    def test_resources(self) -> None:
        """Limits are numbers: bytes, CPUs, processes."""
        self.assertEqual(
            params("--memory", "512m", "--cpus", "1.5", "--pids", "9", "i")["resources"],
            {"memory": 512 << 20, "cpus": 1.5, "pids": 9},
        )
        with self.assertRaises(InvalidOption):
            params("--cpus", "many", "i")

    def test_the_rest(self) -> None:
        """The other options are passed on under the protocol's names."""
        found = params(
            *("-u", "1000:10", "-w", "/srv", "--read-only", "--privileged", "-t"),
            *("--runtime", "crun", "--snapshotter", "native", "--hostname", "h"),
            *("-l", "a=b=c", "--label", "d", "--net", "/run/netns/x"),
            *("--cap-add", "cap_net_admin", "--cap-drop", "kill", "--entrypoint", ""),
            "i",
        )
        self.assertEqual(
            found,
            {
                "image": "i",
                "user": "1000:10",
                "cwd": "/srv",
                "read_only": True,
                "privileged": True,
                "terminal": True,
                "runtime": "crun",
                "snapshotter": "native",
                "hostname": "h",
                "labels": {"a": "b=c", "d": ""},
                "netns": "/run/netns/x",
                "capabilities": ["NET_ADMIN", "-KILL"],
                "entrypoint": [],
            },
        )
        self.assertEqual(params("--net", "host", "--entrypoint", "/x", "i")["entrypoint"], ["/x"])


class ParseSizeTests(unittest.TestCase):
    def test_sizes(self) -> None:
        """Units are powers of 1024, in either case, with or without a b."""
        for text, expected in (
            ("0", 0),
            ("65536", 65536),
            ("64b", 64),
            ("4k", 4096),
            ("512M", 512 << 20),
            ("512mb", 512 << 20),
            ("1.5GiB", 3 << 29),
            ("2t", 2 << 40),
        ):
            self.assertEqual(parse_size(text, "--memory"), expected)

    def test_no_sizes(self) -> None:
        """Anything else is an error that names the option."""
        for text in ("", "m", "-1", "1x", "1mm", "1e9", "inf", "nan", "1 m", "½m"):
            with self.subTest(text=text), self.assertRaisesRegex(InvalidOption, "--memory"):
                parse_size(text, "--memory")


class EnvironmentTests(unittest.TestCase):
    def test_default(self) -> None:
        """Without an environment given the process's own is used."""
        parser = argparse.ArgumentParser()
        create_options(parser)
        options = parser.parse_args(["-e", "PATH", "i"])
        self.assertEqual(container_params(options, "x")["env"], [f"PATH={os.environ['PATH']}"])
