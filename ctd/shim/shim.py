"""A shim, from the fork on: its parts put together, and when it ends."""

from __future__ import annotations

import fcntl
import os

from ctd import kernel
from ctd.protocols.shim import FAILED_PRECONDITION, SHIM_FILE, VERSION, Failure, encode
from ctd.shim import mounts, records, surroundings
from ctd.shim.children import Children
from ctd.shim.container import Container
from ctd.shim.log import log, log_exception
from ctd.shim.loop import Loop
from ctd.shim.runtime import Runtime
from ctd.shim.server import Server

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ctd.shim.server import Method

#: How long, in seconds, a shim that nobody needs waits for a connection.
IDLE = 60.0

#: How often, in seconds, one without a container looks whether its run is still there.
LOOK = 1.0


def main(params: dict[str, Any], answer: int) -> None:
    """Be a shim until the end.

    :param params: of the ``fork`` request.
    :param answer: a pipe that gets one line, ``{pid, start_time}`` once the
        shim listens or ``{kind, message}``, and is closed then.
    """
    try:
        surroundings.settle(params["directory"], answer)
        claim()
        mounts.leave_namespace()
        shim = Shim(params)
    except Exception as error:  # noqa: BLE001 (told to who asked)
        log_exception("the shim cannot begin")
        os.write(answer, encode({"kind": "internal", "message": str(error)}))
        return
    os.write(answer, encode(shim.identity))
    os.close(answer)
    shim.run()


def claim() -> None:
    """Have this run for ourselves as long as we live.  :raise OSError: another shim has it."""
    directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OSError("another shim has this run") from None


class Shim:
    """One container's shim, listening.

    :ivar loop: all its work is done in there.
    :ivar identity: its pid and start time.
    """

    def __init__(self, params: dict[str, Any]) -> None:
        pid = os.getpid()
        self.identity = {"pid": pid, "start_time": kernel.start_time(pid)}
        self._idle = float(params.get("idle", IDLE))
        self.loop = Loop()
        children = Children(self.loop)
        run, directory = params["run"], params["directory"]
        runtime = Runtime(params["runtime"], params["runtime_root"], run, children)
        container = self._container = Container(
            self.loop, children, runtime, directory, params["records"], self._notify
        )
        named = ("run", "namespace", "container", "runtime", "runtime_root", "records")
        record = {name: params[name] for name in named}
        record |= {"version": VERSION, **self.identity}
        records.write(directory, SHIM_FILE, record, durable=False)
        methods: dict[str, Method] = {
            "create": container.create,
            "start": container.start,
            "exec": container.exec,
            "kill": container.kill,
            "close_stdin": container.close_stdin,
            "resize": container.resize,
            "reopen": container.reopen,
            "state": container.state,
            "delete": container.delete,
            "shutdown": self._shutdown,
        }
        identity = {"run": run, **self.identity}
        self._server = Server(self.loop, methods, identity, self._expect)
        self._expect()
        self.loop.after(LOOK, self._look_whether_known)

    def run(self) -> None:
        """Work until nobody needs it."""
        try:
            self.loop.run()
            self._container.close()
            self._server.close()
        except BaseException:
            log_exception("the shim dies")
            raise

    def _notify(self, method: str, params: dict[str, Any]) -> None:
        self._server.notify(method, params)

    def _expect(self) -> None:
        """Expect a connection, and end if none comes and nothing is to be kept."""
        self.loop.after(self._idle, self._look_whether_needed)

    def _look_whether_needed(self) -> None:
        if self._server.is_deserted and not self._container.alive:
            log("nobody needs this shim")
            self.loop.stop()

    def _look_whether_known(self) -> None:
        """End at once if the run was destroyed by who did not know that we were on our way."""
        if self._container.alive:
            return
        if self._server.is_deserted and not os.path.exists(SHIM_FILE):
            log("the run is gone")
            self.loop.stop()
        else:
            self.loop.after(LOOK, self._look_whether_known)

    def _shutdown(self, params: dict[str, Any]) -> dict[str, Any]:
        if self._container.alive:
            raise Failure(FAILED_PRECONDITION, "init has not been deleted")
        self.loop.after(0, self.loop.stop)  # after the reply
        return {}
