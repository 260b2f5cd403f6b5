"""Script that becomes process 1 of a container in the new namespaces in which `images.Buildah` starts it.

`python inside.py SPECIFICATION` reads a JSON file, mounts the file systems of the container, changes root folder and
user, and executes the command.
"""

import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
"""Constants of linux/sockios.h and linux/if.h."""


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def main() -> None:
    specification = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    root, scratch = specification["root"], specification["scratch"]
    layers = ",".join(f"{name}={folder}" for name, folder in specification["layers"].items())
    mount("-t", "overlay", "overlay", "-o", layers, root)
    mount("--rbind", "/dev", f"{root}/dev")
    mount("-t", "proc", "proc", f"{root}/proc")
    if specification["read_only"]:
        mount("-o", "remount,ro", root)
        mount("--bind", scratch, f"{root}/tmp")
    for source, target in specification["volumes"].items():
        folder, _, mode = target.partition(":")
        mount("--bind", source, f"{root}{folder}")
        if mode == "ro":
            mount("-o", "remount,bind,ro", f"{root}{folder}")
    with socket.socket() as any_socket:  # the only interface is the loopback, which is down
        name = struct.pack("16sh", b"lo", 0)
        flags = struct.unpack("16sh", fcntl.ioctl(any_socket, SIOCGIFFLAGS, name))[1]
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh", b"lo", flags | IFF_UP))
    socket.sethostname("container")  # which nothing resolves, as in a container without network
    os.chroot(root)
    os.chdir(specification["workdir"])
    os.setgroups([])
    os.setgid(specification["group"])
    os.setuid(specification["user"])
    command = specification["command"]
    os.execvpe(command[0], command, specification["environment"])


if __name__ == "__main__":
    main()
