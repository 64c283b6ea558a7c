"""The fork server: imports what programs need once, and forks a process for each program.

    python -P -m tasks.runtime.fork_server_program PARENT LIBRARY...

PARENT is the process that the server must not outlive. Standard input is a socket. Each message on
it is a job, in JSON: `module`, `job_file`, `cwd`, and `needs`, the libraries to import before the
fork. Four descriptors come with it: the program's standard input, output and error, and a status
socket, on which the server sends the program's pid with its pidfd, and in the end its wait status.
If the other end of the status socket is closed, the program is killed. `tasks.runtime.fork_server`
is the parent's side.

A fork inherits only the thread that called it. So libraries are imported here but never used:
threads that an import starts (OpenBLAS, jemalloc) are made for forks, those of a computation may
not be.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import selectors
import signal
import socket
import sys
import traceback
from functools import partial
from typing import Any, BinaryIO, NoReturn

_PARENT_CHECK_SECONDS = 5.0
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Server:
    """Takes jobs until its socket is closed, and stays until their programs have ended.

    Args:
        jobs: The socket on which jobs arrive.
        parent: The process that the server must not outlive.
        libraries: What to import while there is no job.
    """

    def __init__(self, jobs: socket.socket, parent: int, libraries: list[str]) -> None:
        self._jobs, self._parent, self._libraries = jobs, parent, libraries
        self._selector = selectors.DefaultSelector()
        self._selector.register(jobs, selectors.EVENT_READ, self._take)

    def serve(self) -> None:
        """Serve until there is nothing left to do, or the parent is gone."""
        # A process forked by the parent may hold the socket open, so check the parent itself too.
        while os.getppid() == self._parent and self._selector.get_map():
            wait = 0.0 if self._libraries else _PARENT_CHECK_SECONDS
            ready = self._selector.select(wait)
            if ready:
                # One at a time: handling an event may close the file of another.
                ready[0][0].data()
            elif self._libraries:
                self._load(self._libraries[:1])

    def _load(self, libraries: list[str]) -> None:
        for name in libraries:
            # A library that cannot be imported fails again, and visibly, in the program that needs
            # it.
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        self._libraries = [name for name in self._libraries if name not in libraries]

    def _take(self) -> None:
        message, fds, *_ = socket.recv_fds(self._jobs, 1 << 16, 4)
        if not message:
            self._selector.unregister(self._jobs)
            return
        request, status = json.loads(message), socket.socket(fileno=fds.pop())
        self._load(request["needs"])
        withdrawn = select.select([status], [], [], 0)[0]
        try:
            if not withdrawn:
                self._fork(request, fds, status)
        except OSError as error:
            os.write(fds[2], f"no process for the program: {error}\n".encode())
        finally:
            for fd in fds:
                os.close(fd)

    def _fork(self, request: dict[str, Any], fds: list[int], status: socket.socket) -> None:
        # A garbage collection would write to most of the shared pages, and so copy them.
        gc.freeze()
        pid = os.fork()
        if not pid:
            self._run_program(request, fds, status)
        process = open(os.pidfd_open(pid), "rb", buffering=0)  # noqa: SIM115
        with contextlib.suppress(OSError):
            socket.send_fds(status, [str(pid).encode()], [process.fileno()])
        for file, react in ((process, self._ended), (status, self._abandoned)):
            action = partial(react, pid, process, status)
            self._selector.register(file, selectors.EVENT_READ, action)

    def _abandoned(self, pid: int, process: BinaryIO, status: socket.socket) -> None:
        self._selector.unregister(status)
        os.kill(pid, signal.SIGKILL)

    def _ended(self, pid: int, process: BinaryIO, status: socket.socket) -> None:
        ended = os.waitpid(pid, 0)[1]
        for file in (process, status):
            with contextlib.suppress(KeyError):
                self._selector.unregister(file)
        with contextlib.suppress(OSError):
            status.send(str(ended).encode())
        process.close()
        status.close()

    def _run_program(
        self, request: dict[str, Any], fds: list[int], status: socket.socket
    ) -> NoReturn:
        """Run the program in the forked process, as if this were a fresh one."""
        code: Any = 1
        try:
            # The program must not hold other programs' status sockets open.
            for key in list(self._selector.get_map().values()):
                key.fileobj.close()
            self._selector.close()
            status.close()
            for number, fd in enumerate(fds):
                os.dup2(fd, number)
                os.close(fd)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
            os.chdir(request["cwd"])
            sys.argv = [request["module"], request["job_file"]]
            importlib.invalidate_caches()
            runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as ended:
            code = ended.code or 0
            if not isinstance(code, int):
                print(code, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
            os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    # A signal to the process group is meant for the programs; their parent decides what follows.
    # Blocked, not ignored: a program that has just been forked must not lose it.
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    Server(socket.socket(fileno=0), int(sys.argv[1]), sys.argv[2:]).serve()
