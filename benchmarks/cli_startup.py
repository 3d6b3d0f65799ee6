"""How long the ``ctd`` command takes to start: whole processes, against a bare interpreter.

    python benchmarks/cli_startup.py [ROUNDS]

``info`` speaks to a socket that answers at once, so what is measured is the
interpreter, the imports, the parsing and one round trip.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

CTD = Path(sys.executable).parent / "ctd"


def answer(server: socket.socket) -> None:
    """Answer each connection's first request."""
    while True:
        connection, _ = server.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b'{"jsonrpc": "2.0", "id": 1, "result": {"version": "0"}}\n')


def measure(command: list[str], rounds: int) -> list[float]:
    """Milliseconds of each round, sorted; the first one warms the page cache."""
    times = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        times.append((time.perf_counter() - began) * 1000)
    return sorted(times[1:])


def main() -> None:
    """Print a line a command."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    with tempfile.TemporaryDirectory() as directory:
        os.environ["CTD_HOST"] = path = f"{directory}/ctd.sock"
        server = socket.socket(socket.AF_UNIX)
        server.bind(path)
        server.listen()
        threading.Thread(target=answer, args=(server,), daemon=True).start()
        for name, command in (
            ("python -c pass", [sys.executable, "-c", "pass"]),
            ("ctd --version", [str(CTD), "--version"]),
            ("ctd info", [str(CTD), "info"]),
            ("ctd run --help", [str(CTD), "run", "--help"]),
        ):
            times = measure(command, rounds)
            median, worst = statistics.median(times), times[int(len(times) * 0.95) - 1]
            print(f"{name:<16} median {median:5.1f} ms   95 % {worst:5.1f} ms")


if __name__ == "__main__":
    main()
