"""What a server may leave behind: processes, shared memory, folders."""

import time
from pathlib import Path

import psutil

WAIT_SECONDS = 30.0


def server_processes(repository: Path) -> list[int]:
    """The processes of servers and their stubs whose command line names a repository."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = " ".join(process.info["cmdline"] or ())
        if ("tritonserver" in words or "triton_python_backend_stub" in words) and str(repository) in words:
            found.append(process.pid)
    return found


def descendants(pid: int) -> list[psutil.Process]:
    """Everything a process started, directly or not."""
    return psutil.Process(pid).children(recursive=True)


def shared_memory(processes: list[psutil.Process]) -> set[Path]:
    """The server's shared memory files that these processes have mapped."""
    maps = [region.path for process in processes for region in process.memory_maps(grouped=True)]
    return {Path(path) for path in maps if path.startswith("/dev/shm/triton_")}


def all_gone(processes: list[psutil.Process], files: set[Path]) -> bool:
    """Whether the processes end and the files vanish within a generous time."""
    until = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < until:
        alive = [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
        if not alive and not any(file.exists() for file in files):
            return True
        time.sleep(0.1)
    return False
