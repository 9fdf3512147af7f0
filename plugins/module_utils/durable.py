# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write files so that a crash at any moment leaves the old content or the new."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import os
import shutil
import tempfile
import typing as t

_PIECE = 1 << 20


def write(path: str, content: bytes, mode: int, work: str | None = None) -> None:
    """Replace a file; what is not complete yet is beside it, or in a work folder on the same filesystem."""
    folder = os.path.dirname(path)
    handle, temporary = tempfile.mkstemp(dir=work or folder, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
        sync_folder(folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def sync_file(path: str) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: str) -> None:
    """Make sure that what has a name in the folder keeps it; some filesystems cannot do this."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


@contextlib.contextmanager
def work_folder(folder: str, name: str) -> t.Iterator[str]:
    """A private folder for what is in progress. Those of killed processes, which nobody locks, are removed."""
    for old in glob.glob(os.path.join(glob.escape(folder), f".{glob.escape(name)}.*.work")):
        # One of another user, or one that is gone by now, is none of ours.
        with contextlib.suppress(OSError):
            handle = os.open(old, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(handle).st_uid == os.geteuid():
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(old, ignore_errors=True)
            finally:
                os.close(handle)
    while True:
        made = tempfile.mkdtemp(prefix=f".{name}.", suffix=".work", dir=folder)
        try:
            handle = os.open(made, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            # Another process took it for an old one before it was locked.
            continue
        fcntl.flock(handle, fcntl.LOCK_EX)
        if os.path.exists(made):
            break
        os.close(handle)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(handle)
