"""What looks like a shim from outside: run as a program, standard library only.

``small_shim.py DIRECTORY RUN`` writes ``shim.json`` and listens.  It answers
``hello`` and ``state``; ``start`` makes it hang up, ``shutdown`` end, and
``kill`` tell of an exit.
"""

from __future__ import annotations

import json
import os
import socket
import sys


def main(directory: str, run: str) -> None:
    """Be one until told to end."""
    os.chdir(directory)
    with open("/proc/self/stat") as file:  # noqa: PTH123 (standard library only, and no more)
        start_time = int(file.read().rpartition(")")[2].split()[19])
    me = {"version": 1, "run": run, "pid": os.getpid(), "start_time": start_time}
    server = socket.socket(socket.AF_UNIX)
    server.bind("shim.sock")
    server.listen()
    with open("shim.new", "w") as file:  # noqa: PTH123
        json.dump({**me, "runtime": "/bin/false"}, file)
    os.rename("shim.new", "shim.json")
    while True:
        connection, _ = server.accept()
        with connection, connection.makefile("rwb") as stream:
            for line in stream:
                request = json.loads(line)
                method = request["method"]
                if method == "start":
                    break
                if method == "shutdown":
                    return
                if method == "kill":
                    exit = {"exit_status": 3, "exit_reason": "exited", "exited_at": "t"}
                    told = {"method": "exited", "params": {"process": "init", "pid": 1, **exit}}
                    stream.write(json.dumps(told).encode() + b"\n")
                result = {"hello": me, "state": {"processes": []}}.get(method, {})
                stream.write(json.dumps({"id": request["id"], "result": result}).encode() + b"\n")
                stream.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
