"""Debian's docker-registry on a free loopback port, filled by skopeo."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

_CONFIG = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: {storage}}}
  delete: {{enabled: true}}
http: {{addr: "{address}"}}
"""


class Registry:
    """A registry without TLS or accounts.

    :ivar address: ``127.0.0.1:PORT``.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Registry:
        """Start it and wait until it answers."""
        self._directory.mkdir(parents=True, exist_ok=True)
        config = self._directory / "config.yml"
        config.write_text(_CONFIG.format(storage=self._directory / "storage", address=self.address))
        program = shutil.which("docker-registry") or "/usr/bin/docker-registry"
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen([program, "serve", config], stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while True:
            try:
                urllib.request.urlopen(f"http://{self.address}/v2/", timeout=5).close()
            except (urllib.error.URLError, ConnectionError):
                if time.monotonic() > deadline or self._process.poll() is not None:
                    log_text = (self._directory / "log").read_text()
                    raise AssertionError(f"the registry does not start: {log_text}") from None
                time.sleep(0.02)
            else:
                return self

    def stop(self) -> None:
        """End it; what was pushed stays for the next :meth:`start`."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    def push(self, source: Path, name: str, *options: str) -> str:
        """Push an OCI layout (a directory) or archive, and give the full name it has now.

        :param name: ``repository:tag``.
        :param options: more of ``skopeo copy``'s, like ``--format v2s2``.
        """
        kind = "oci" if source.is_dir() else "oci-archive"
        target = f"{self.address}/{name}"
        command = ["skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"]
        done = subprocess.run(
            [*command, *options, f"{kind}:{source}:latest", f"docker://{target}"],
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return target
