"""The Unix account that runs the servers, and the folders that it can reach.

Postgres refuses to run as root. As root, the servers run as `nobody`, who cannot pass a folder closed to
others (a home at mode 0700): such data and binaries live in a folder under /var/tmp instead.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import EmbeddedServiceError

OPEN_PARENT = Path("/var/tmp")


@dataclass(frozen=True)
class Account:
    """The account to change to in a child. Only root has a need for one."""

    uid: int
    gid: int

    def popen_arguments(self) -> dict[str, Any]:
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def own(self, path: Path) -> None:
        os.chown(path, self.uid, self.gid)

    def can_reach(self, path: Path) -> bool:
        """Whether the account may pass every folder above `path`, and `path` itself if it is there."""
        resolved = path.resolve()
        return all(self._can_pass(folder) for folder in [resolved, *resolved.parents] if folder.is_dir())

    def _can_pass(self, folder: Path) -> bool:
        found = folder.stat()
        if found.st_uid == self.uid:
            return bool(found.st_mode & stat.S_IXUSR)
        if found.st_gid == self.gid:
            return bool(found.st_mode & stat.S_IXGRP)
        return bool(found.st_mode & stat.S_IXOTH)


def server_account() -> Account | None:
    """`nobody` when this process is root, else None: the servers run as ourselves."""
    if os.geteuid() != 0:
        return None
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        raise EmbeddedServiceError(
            "Postgres does not run as root, and this machine has no account `nobody`. "
            "Run this as an ordinary user."
        ) from None
    return Account(nobody.pw_uid, nobody.pw_gid)


def open_folder(*identity: str) -> Path:
    """A folder under /var/tmp that other accounts can pass; the same one for the same identity.

    Raises:
        EmbeddedServiceError: somebody else made a folder of that name.
    """
    digest = hashlib.sha256("\0".join(identity).encode()).hexdigest()[:16]
    folder = OPEN_PARENT / f"tidegate-{digest}"
    folder.mkdir(mode=0o711, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise EmbeddedServiceError(f"{folder} belongs to another account. Remove it, then start again.")
    folder.chmod(0o711)
    return folder
