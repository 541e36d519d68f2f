"""SIGINT and SIGTERM end a command within seconds, with one line that says how to go on."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import click

SECONDS = 4.0  # for what is under way to end by itself
_ONCE_MORE = 0.05  # seconds until a signal is sent again that ended nothing
_NUMBERS = (signal.SIGINT, signal.SIGTERM)
LINE = "interrupted; the same command continues"


class Terminated(KeyboardInterrupt):
    """SIGTERM came: the same as Ctrl-C but for the exit status."""


@contextmanager
def ending_in_time() -> Iterator[None]:
    """Let the block end by these signals as by Ctrl-C, and this process if the block does not.

    A thread of its own waits for them: Python runs no handler while a library computes. An error
    that a library makes of the interrupt is taken for it. Where a destructor runs just then, which
    no error leaves, the signal is sent again.

    :raises click.Abort: in place of an error after a signal
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    own, other = socket.socketpair()
    other.setblocking(False)
    threading.Thread(target=_watch, args=(own,), daemon=True).start()
    came: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        came.append(number)
        raise _of(number)

    def unraisable(what: sys.UnraisableHookArgs) -> None:
        if came and issubclass(what.exc_type, KeyboardInterrupt):  # a destructor took it
            again = threading.Timer(_ONCE_MORE, os.kill, (os.getpid(), came[-1]))
            again.daemon = True
            again.start()
        else:
            shows(what)

    heard = [one for one in _NUMBERS if signal.getsignal(one) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in heard}
    fd = signal.set_wakeup_fd(other.fileno(), warn_on_full_buffer=False)
    shows, sys.unraisablehook = sys.unraisablehook, unraisable
    try:
        yield
    except click.Abort:
        raise
    except Exception:
        if not came:
            raise
        raise click.Abort from _of(came[0])
    finally:
        sys.unraisablehook = shows
        signal.set_wakeup_fd(fd)
        for number, handler in before.items():
            signal.signal(number, handler)
        other.close()


def _of(number: int) -> KeyboardInterrupt:
    return Terminated() if number == signal.SIGTERM else KeyboardInterrupt()


def _watch(own: socket.socket) -> None:
    """Wait for a signal, then for the block; end the process if it does not end."""
    with own:
        while number := own.recv(1):
            if number[0] in _NUMBERS:
                break
        else:
            return
        own.settimeout(SECONDS)
        try:
            while own.recv(1):
                pass
        except TimeoutError:
            _end(number[0])


def _end(number: int) -> None:
    """End this process and what it started; what it held is taken over by the next one."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        try:
            child.kill()
        except psutil.Error:
            continue
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{LINE}\n".encode())
    os._exit(128 + number)
