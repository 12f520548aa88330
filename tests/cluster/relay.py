"""A small user-space network of point-to-point links with an uneven delay, for kernels without `netem`.

Run as `python -S relay.py NAMESPACE:ADDRESS:OUT_S:IN_S:JITTER_S ...`. Each namespace gets a device `eth0` (TUN); a
packet from one to another waits the sender's OUT_S, the receiver's IN_S and a random share of both jitters, and never
overtakes one before it on the same way.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import os
import random
import select
import socket
import struct
import sys
import time
from itertools import count

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
CLONE_NEWNET = 0x40000000


def open_tun(namespace: str, name: str) -> int:
    """A TUN device in another network namespace; this process comes back to its own."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    try:
        if libc.setns(there, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns {namespace}")
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN | IFF_NO_PI))
    finally:
        libc.setns(home, CLONE_NEWNET)
        os.close(home)
        os.close(there)
    return fd


def main() -> None:
    ways = [argument.split(":") for argument in sys.argv[1:]]
    fds = {socket.inet_aton(address): open_tun(namespace, "eth0") for namespace, address, *_ in ways}
    delay = {socket.inet_aton(way[1]): tuple(map(float, way[2:])) for way in ways}
    source_of = {fd: address for address, fd in fds.items()}
    print("ready", flush=True)
    waiting: list[tuple[float, int, int, bytes]] = []
    last: dict[tuple[bytes, bytes], float] = {}
    number = count()
    poll = select.epoll()
    for fd in source_of:
        poll.register(fd, select.EPOLLIN)
    while True:
        timeout = max(0.0, waiting[0][0] - time.monotonic()) if waiting else -1
        for fd, _ in poll.poll(min(timeout, 0.0002) if 0 <= timeout < 0.001 else timeout):
            while True:
                try:
                    packet = os.read(fd, 65536)
                except BlockingIOError:
                    break
                source, target = source_of[fd], packet[16:20]
                if packet[0] >> 4 != 4 or target not in fds:
                    continue
                (out_s, _, jitter), (_, in_s, jitter_in) = delay[source], delay[target]
                at = time.monotonic() + out_s + in_s + random.random() * (jitter + jitter_in)
                last[source, target] = at = max(at, last.get((source, target), 0.0))
                heapq.heappush(waiting, (at, next(number), fds[target], packet))
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            _, _, fd, packet = heapq.heappop(waiting)
            try:
                os.write(fd, packet)
            except OSError:  # the node has gone
                continue


if __name__ == "__main__":
    main()
