"""Stops processes when their supervisor is gone, where the kernel does not do it (macOS).

Runs as a process of its own, standard library only. It reads lines `+ PID SIGNAL` and `- PID` from its
standard input; the supervisor alone holds the other end, so end-of-file means that it died.
"""

from __future__ import annotations

import os
import signal
import sys
import time

GRACE_S = 10.0


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def send(pid: int, signum: int) -> None:
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        return


def stop_all(watched: dict[int, int], grace_s: float = GRACE_S) -> None:
    """Send each process its own stop signal, then SIGKILL to what is left after the grace."""
    for pid, signum in watched.items():
        send(pid, signum)
    deadline = time.monotonic() + grace_s
    while any(is_alive(pid) for pid in watched) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in filter(is_alive, watched):
        send(pid, signal.SIGKILL)


def main() -> None:
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)  # a Ctrl-C reaches the whole group; only end-of-file counts
    watched: dict[int, int] = {}
    for line in sys.stdin:
        verb, pid, *rest = line.split()
        if verb == "+":
            watched[int(pid)] = int(rest[0])
        else:
            watched.pop(int(pid), None)
    stop_all(watched)


if __name__ == "__main__":
    main()
