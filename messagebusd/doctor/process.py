"""What the operating system and the settings allow this process."""

from __future__ import annotations

import os
import resource

from messagebusd.doctor.report import Finding, ok, problem, size, warning
from messagebusd.settings import Settings

# Besides a file for each parked poll: logs, stores, listeners, publishers, polls that only arrive.
OTHER_FILES = 512


def open_files(settings: Settings) -> Finding:
    """Whether a file descriptor is there for each poll that may wait."""
    return judge_open_files(
        resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        settings.poll.max_active_clients,
        settings.server.workers,
    )


def judge_open_files(limit: int, max_active_clients: int, workers: int) -> Finding:
    """``limit`` is the hard one, which the daemon raises its own to."""
    needed = -(-max_active_clients // workers) + OTHER_FILES
    if limit == resource.RLIM_INFINITY or limit >= needed:
        shown = "unlimited" if limit == resource.RLIM_INFINITY else str(limit)
        return ok("process.files", f"open files: {shown}, {needed} are needed for a worker")
    return warning(
        "process.files",
        f"open files: at most {limit}, but a worker needs {needed} when "
        f"poll.max_active_clients ({max_active_clients}) polls wait",
        f"LimitNOFILE={needed} in the systemd unit (or ulimit -Hn {needed}), or lower "
        "poll.max_active_clients",
    )


def memory_store(settings: Settings) -> list[Finding]:
    """What to know of the store in the daemon's own memory."""
    memory = settings.backend.memory
    findings = [ok("memory.size", f"at most {size(memory.max_bytes)} of messages are kept")]
    if memory.snapshot_file is None:
        findings.append(
            warning(
                "memory.snapshot",
                "nothing is kept over a restart: all ids begin anew",
                "set backend.memory.snapshot_file, or use Redis or PostgreSQL",
            )
        )
        return findings
    folder = memory.snapshot_file.parent
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        findings.append(
            problem(
                "memory.snapshot",
                f"the folder of backend.memory.snapshot_file, {folder}, cannot be written to",
                "create it and give it to the daemon's user (run the doctor as that user)",
            )
        )
    else:
        findings.append(
            ok("memory.snapshot", "written at a clean stop; a crash loses what came after the last")
        )
    return findings
