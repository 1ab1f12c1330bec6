"""Which network interface ranks talk over: the one that has the address by which Ray knows the node.

Left to themselves, NCCL and gloo take what the host's name resolves to, or the first interface that is up: on machines
with several, or with containers, that is often one that the other nodes do not reach. Set before torch is loaded.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct

_SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface
_NAME_BYTES = 15
VARIABLES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")


def interface_of(address: str) -> str | None:
    """The interface that has this IPv4 address. None: no interface of this machine."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            if _address(probe, name) == address:
                return name
    return None


def talk_over(address: str) -> None:
    """What the environment says already stays."""
    name = interface_of(address)
    for variable in VARIABLES:
        if name is not None:
            os.environ.setdefault(variable, name)


def _address(probe: socket.socket, name: str) -> str | None:
    request = struct.pack("256s", name.encode()[:_NAME_BYTES])
    try:
        answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
    except OSError:
        return None  # it has none
    return socket.inet_ntoa(answer[20:24])
