"""What the documents print about the control protocol, done exactly as printed."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.integration.harness import Daemon

DOCUMENT = Path(__file__).parents[2] / "design" / "control-protocol.md"
SOCKET = "/run/ctd/ctd.sock"


def recipes() -> list[tuple[str, list[str]]]:
    """Each command in the document's consoles, with the lines printed below it."""
    found: list[tuple[str, list[str]]] = []
    for block in re.findall(r"```console\n(.*?)```", DOCUMENT.read_text(), re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            # Of what follows the prompt, the output begins at the first line of JSON.
            lines = part.rstrip().splitlines()
            end = next(n for n, line in enumerate(lines) if line.startswith(("{", "...")))
            found.append(("\n".join(lines[:end]), lines[end:]))
    return found


def as_printed(printed: str) -> re.Pattern[str]:
    """What a printed line stands for; ``...`` is anything."""
    parts = printed.replace(", ", ",").split("...")
    return re.compile(".*".join(re.escape(part) for part in parts))


def done(daemon: Daemon, command: str) -> list[str]:
    """The lines a shell's command prints."""
    command = command.replace(SOCKET, str(daemon.socket))
    result = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=60
    )
    assert (result.returncode, result.stderr) == (0, ""), result
    return result.stdout.splitlines()


def recipe(method: str) -> tuple[str, list[str]]:
    """The one recipe that calls a method."""
    [found] = [one for one in recipes() if f'"{method}"' in one[0]]
    return found


def test_recipes() -> None:
    """Each of the document's recipes has its test here."""
    first = [re.findall(r'"method":"([a-z.]+)"', command)[0] for command, _ in recipes()]
    assert first == ["daemon.info", "images.pull", "containers.create", "containers.start"]


def test_info(daemon: Daemon) -> None:
    """One line of JSON through nc is a call, and its answer is a line."""
    command, [printed] = recipe("daemon.info")
    [line] = done(daemon, command)
    assert line.startswith('{"jsonrpc":"2.0","id":null,"result":{"version":"0.')
    assert printed.startswith('{"jsonrpc":"2.0","id":null,"result":{"version":"0.')
    assert json.loads(line)["result"]["pid"] == daemon.pid


def test_pull_create_start_wait(daemon: Daemon, image: str) -> None:
    """The recipes for a container, from the pull to the exit, work one after the other."""
    command, printed = recipe("images.pull")
    lines = done(daemon, command.replace("alpine", image))
    assert as_printed(printed[0]).fullmatch(lines[0])
    assert printed[1] == "..."
    assert as_printed(printed[2].replace("docker.io/library/alpine:latest", image)).fullmatch(
        lines[-1]
    )
    daemon.call("images.tag", source=image, target="alpine")

    command, [expected] = recipe("containers.create")
    [line] = done(daemon, command.replace('"60"', '"0.3"'))
    assert as_printed(expected).fullmatch(line), line

    command, printed = recipe("containers.start")
    lines = done(daemon, command)
    for line, expected in zip(sorted(lines), sorted(printed), strict=True):
        assert as_printed(expected).fullmatch(line), line
    daemon.call("containers.delete", id="web")


@pytest.mark.parametrize(
    ("line", "code", "kind"),
    [
        ("not json", -32700, "invalid_argument"),
        ('{"method": 1}', -32600, "invalid_argument"),
        ("[]", -32600, "invalid_argument"),
        ('{"method": "no.such"}', -32601, "unimplemented"),
        ('{"method": "containers.get", "params": {"id": "x"}}', -32001, "not_found"),
        ('{"method": "containers.get", "params": {"ID": "x"}}', -32602, "invalid_argument"),
        ('{"method": "images.pull", "params": {"ref": "A B"}}', -32602, "invalid_argument"),
    ],
)
def test_errors(daemon: Daemon, line: str, code: int, kind: str) -> None:
    """What is wrong is answered with its code and kind, and the next line is taken."""
    lines = subprocess.run(
        ["nc", "-N", "-U", daemon.socket],
        input=f'{line}\n{{"id": 7, "method": "daemon.info"}}\n',
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    answers: dict[Any, dict[str, Any]] = {json.loads(one)["id"]: json.loads(one) for one in lines}
    assert answers[None]["error"]["code"] == code
    assert answers[None]["error"]["data"]["kind"] == kind
    assert answers[7]["result"]["pid"] == daemon.pid


def test_examples(daemon: Daemon) -> None:
    """rpc.discover describes every method, with an example of each that takes parameters."""
    document = daemon.call("rpc.discover")
    methods = {method["name"]: method for method in document["methods"]}
    assert {"containers.create", "images.pull", "events.subscribe"} <= set(methods)
    assert daemon.ctd("call", "daemon.info").status == 0


def test_subscribe(daemon: Daemon, image: str) -> None:
    """A script that subscribes is told first from where on, then each event once, in order."""
    command = '{"id":1,"method":"events.subscribe","params":{"since":0}}\n'
    socat = subprocess.Popen(
        ["socat", "-", f"UNIX-CONNECT:{daemon.socket}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert socat.stdin is not None
    assert socat.stdout is not None
    socat.stdin.write(command)
    socat.stdin.flush()
    first = json.loads(socat.stdout.readline())
    assert first["method"] == "event"
    assert first["params"] == {"call": 1, "subscribed": {"since": 0}}
    daemon.call("images.pull", ref=image)
    daemon.run(["true"], image=image)
    expected = daemon.events()
    seen = [json.loads(socat.stdout.readline())["params"] for _ in expected]
    assert seen == [{"call": 1, "event": event} for event in expected]
    socat.kill()
    socat.communicate()
