"""The program host: imports what programs need once, and forks a process for each program.

    python -P -m tasks.runtime.fork_server_program PARENT LIBRARY...

Its standard input is a socket. Each message on it is a job, in JSON: `module`, `job_file`, `cwd`,
and `needs`, the libraries to be there before the fork. Four descriptors come with it: the program's
standard input, output and error, and a socket for its status, on which the host sends the program's
pid with its pidfd, and at last its wait status. Where nobody listens there any more, the program is
killed. `tasks.runtime.fork_server` is the parent's side.

A fork has only the thread that called it, so libraries are imported here and never used: threads
that an import starts (OpenBLAS, jemalloc) know about forks, those of a computation may not.
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

_SECONDS_BETWEEN_PARENT_CHECKS = 5.0
_STOPS = (signal.SIGTERM, signal.SIGINT)


class Host:
    """Takes jobs until its socket ends, and stays until their programs have ended.

    Args:
        jobs: Where they come from.
        parent: The process without which nothing here is wanted.
        libraries: What to import while there is nothing else to do.
    """

    def __init__(self, jobs: socket.socket, parent: int, libraries: list[str]) -> None:
        self._jobs, self._parent, self._libraries = jobs, parent, libraries
        self._selector = selectors.DefaultSelector()
        self._selector.register(jobs, selectors.EVENT_READ, self._take)

    def serve(self) -> None:
        """Do all the work."""
        # A process forked by the parent may hold the socket open: the parent's id tells as well.
        while os.getppid() == self._parent and self._selector.get_map():
            wait = 0.0 if self._libraries else _SECONDS_BETWEEN_PARENT_CHECKS
            ready = self._selector.select(wait)
            if ready:
                # One at a time: what it does may close another one.
                ready[0][0].data()
            elif self._libraries:
                self._load(self._libraries[:1])

    def _load(self, libraries: list[str]) -> None:
        for name in libraries:
            # What cannot be imported fails again in the program that needs it, and is told there.
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        self._libraries = [name for name in self._libraries if name not in libraries]

    def _take(self) -> None:
        message, fds, *_ = socket.recv_fds(self._jobs, 1 << 16, 4)
        if not message:
            self._selector.unregister(self._jobs)
            return
        job, status = json.loads(message), socket.socket(fileno=fds.pop())
        self._load(job["needs"])
        withdrawn = select.select([status], [], [], 0)[0]
        try:
            if not withdrawn:
                self._fork(job, fds, status)
        except OSError as error:
            os.write(fds[2], f"no process for the program: {error}\n".encode())
        finally:
            for fd in fds:
                os.close(fd)

    def _fork(self, job: dict[str, Any], fds: list[int], status: socket.socket) -> None:
        # Garbage collection would write to, and so copy, most of what is shared.
        gc.freeze()
        pid = os.fork()
        if not pid:
            self._become(job, fds, status)
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

    def _become(self, job: dict[str, Any], fds: list[int], status: socket.socket) -> NoReturn:
        """Go on as the program, as if it were a fresh process."""
        code: Any = 1
        try:
            # A program must not keep open what tells of the ends of others.
            for key in list(self._selector.get_map().values()):
                key.fileobj.close()
            self._selector.close()
            status.close()
            for number, fd in enumerate(fds):
                os.dup2(fd, number)
                os.close(fd)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
            os.chdir(job["cwd"])
            sys.argv = [job["module"], job["job_file"]]
            importlib.invalidate_caches()
            runpy.run_module(job["module"], run_name="__main__", alter_sys=True)
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
    # A signal to the whole group is for the programs, and their parent decides what comes of it.
    # Blocked rather than ignored, so that one for a program that has just been forked is not lost.
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    Host(socket.socket(fileno=0), int(sys.argv[1]), sys.argv[2:]).serve()
