"""Writing files: atomic replacement, exclusive new names, locks; and hashes and sizes of what was written.

The rule for existing files is the same for every command: a file that exists is refused, and ``--force``
replaces it. A command that writes user-visible files calls `refuse_existing` before it starts to work and
writes inside `claimed`, which creates the names exclusively:

    refuse_existing(paths, force=force)
    with claimed(path, force=force) as path:                           # one given name
        write_bytes(path, data)
    with claimed(numbered(folder, "content", ".png")) as path:         # the first unused number
        write_bytes(path, data)
"""

import errno
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import BinaryIO

from unziplora_cli.errors import ProjectError, Remedy

_UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF}
"""What file systems answer that cannot flush a folder or lock a file."""

_TEMPORARY = re.compile(r"\..+\.(?P<space>[0-9a-f]{12})-(?P<pid>[0-9]+)-[0-9a-f]{8}\.partial")
_ABANDONED_AFTER = 7 * 24 * 3600
"""Seconds without a change after which a temporary file of another machine counts as abandoned."""

_OTHER_PLACE = Remedy("Choose another place", settings={"out": None})


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary file name beside `path`; the file replaces `path` when the block succeeds.

    When the block raises, `path` is unchanged. Temporary files of killed processes in the same folder are
    deleted first.
    """
    remove_stale(path.parent)
    temporary = path.with_name(_temporary_name(path.name))
    try:
        yield temporary
        fsync(temporary)
        temporary.replace(path)
        fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def temporary_folder(folder: Path) -> Iterator[Path]:
    """Yield a new temporary folder inside `folder`; it is deleted when the block ends."""
    remove_stale(folder)
    temporary = folder / _temporary_name("folder")
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_stale(folder: Path) -> None:
    """Delete temporary files and folders whose process has ended.

    A PID is only looked up if the file was written under the same kernel and in the same PID namespace.
    Files of other machines and containers are deleted once they are a week old.
    """
    with os.scandir(folder) as entries:
        matches = [match for entry in entries if (match := _TEMPORARY.fullmatch(entry.name))]
    for match in matches:
        path = folder / match[0]
        with suppress(OSError):
            if match["space"] == (_process_space() or None):
                stale = not _runs(int(match["pid"]))
            else:
                stale = time.time() - path.lstat().st_mtime > _ABANDONED_AFTER
            if stale:
                delete(path)


def delete(path: Path) -> None:
    """Delete a file, a link or a folder with its contents, as far as possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def fsync(path: Path) -> None:
    """Flush a file or a folder to disk, where the file system can do that."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    finally:
        os.close(descriptor)


def _temporary_name(name: str) -> str:
    space = _process_space() or 12 * "0"
    return f".{name[:40]}.{space}-{os.getpid()}-{secrets.token_hex(4)}.partial"


def _process_space() -> str:
    """Twelve digits that identify the set of processes in which a PID is unique; empty when unknown.

    Two containers may have the same host name and use the same PIDs, so on Linux this is the boot ID of the
    kernel with the PID namespace.
    """
    if sys.platform == "linux":
        try:
            boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
            space = f"{boot} {Path('/proc/self/ns/pid').readlink()}"
        except OSError:
            return ""
    else:
        import uuid

        space = f"{platform.node()} {uuid.getnode()}"
    return hashlib.sha256(space.encode()).hexdigest()[:12]


def _runs(pid: int) -> bool:
    from psutil import pid_exists

    return bool(pid_exists(pid))


# New names


def refuse_existing(paths: Iterable[Path], *, force: bool = False) -> None:
    """Raise ProjectError if one of the files exists, unless `force` allows replacing it."""
    for path in paths:
        if os.path.lexists(path) and not force:
            raise _exists(path)


@contextmanager
def claimed(path: Path | Iterable[Path], *, force: bool = False, folder: bool = False) -> Iterator[Path]:
    """Create the first of some names that does not exist, as an empty file or folder, and yield it.

    The creation is exclusive: of two processes that ask for the same name, one gets it. What is still empty
    when the block raises is removed again. With `force` the first name is yielded as it is. Raises
    ProjectError when all names exist, or cannot be created.
    """
    names = [path] if isinstance(path, Path) else path
    if force:
        yield next(iter(names))
        return
    name = None
    for name in names:
        try:
            with write_errors(name.parent):
                if folder:
                    name.mkdir()
                else:
                    name.open("xb").close()
            break
        except FileExistsError:
            continue
    else:
        raise _exists(name) if name else ValueError("there is no name to claim")
    try:
        yield name
    except BaseException:
        with suppress(OSError):
            if folder:
                name.rmdir()
            elif name.stat().st_size == 0:
                name.unlink()
        raise


def numbered(folder: Path, stem: str, suffix: str = "") -> Iterator[Path]:
    """The paths ``stem-001.suffix``, ``stem-002.suffix``, ... in a folder."""
    return (folder / f"{stem}-{number:03d}{suffix}" for number in count(1))


@contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """Create a folder with its parents, where missing; what was created is removed if the block raises."""
    folder = folder.absolute()
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # another process has put something there
            for path in missing:
                path.rmdir()
        raise


def check_writable(folder: Path) -> None:
    """Raise ProjectError unless files can be written to `folder`, which need not exist yet."""
    place = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not place.is_dir():
        reason = f"{place} is not a folder"
    elif not os.access(place, os.W_OK | os.X_OK):
        reason = "permission denied" if place == folder else f"{place} is read-only"
    else:
        return
    raise ProjectError(f"Cannot write to {folder}: {reason}.", _OTHER_PLACE)


@contextmanager
def write_errors(folder: Path) -> Iterator[None]:
    """Turn an OSError of writing to a folder into a ProjectError; FileExistsError passes."""
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        raise ProjectError(f"Cannot write to {folder}: {error.strerror or error}.", _OTHER_PLACE) from error


def _exists(path: Path) -> ProjectError:
    kind = "folder" if path.is_dir() else "file"
    return ProjectError(f"The {kind} {path} already exists.", Remedy("Replace it", settings={"force": True}))


# Reading

MAX_TEXT_SIZE = 64 * 2**20
"""Bytes of the largest manifest, table or preset that is read."""
MAX_IMAGE_SIZE = 4 * 2**30
"""Bytes of the largest image file that is opened."""


@contextmanager
def open_regular(path: Path, limit: int) -> Iterator[BinaryIO]:
    """Open a regular file of at most `limit` bytes; raises OSError for all others.

    A pipe or a device in its place would block, and a sparse file would fill the memory.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"
            raise OSError(errno.EINVAL, f"It is {kind}, not a file", str(path))
        if status.st_size > limit:
            raise OSError(errno.EFBIG, f"It has {status.st_size} bytes, at most {limit} are read", str(path))
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)


def read_bytes(path: Path, limit: int = MAX_TEXT_SIZE) -> bytes:
    """The content of a regular file of at most `limit` bytes; raises OSError for all others."""
    with open_regular(path, limit) as file:
        return file.read(limit + 1)


def read_text(path: Path, limit: int = MAX_TEXT_SIZE) -> str:
    """The same as text; UTF-8, with or without a byte-order mark."""
    return read_bytes(path, limit).decode("utf-8-sig")


def identify(path: Path) -> tuple[str, Remedy] | None:
    """What a file is that cannot be read as safetensors, and what to do with it; None if unknown."""
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        return f"{error.strerror}", Remedy("Check the permissions of the file.")
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        return "it is empty", Remedy("Download it again.")
    if text.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, without the weights", Remedy(
            "Download the file itself", "lfs pull", program="git"
        )
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page", Remedy("Download the file itself; its host may require you to log in.")
    if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return "it is a pickle of PyTorch (.pt, .ckpt, .bin), which may run code when it is opened", Remedy(
            "Convert it to safetensors with the program that made it."
        )
    if start.startswith(b"GGUF"):
        return "it is a GGUF file", Remedy("Use the safetensors file that it was made from.")
    return None


# Hashes, sizes and links


@dataclass(frozen=True)
class Problem:
    """A file that is missing, changed or unreadable."""

    path: str
    reason: str


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open_regular(path, 2**63) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_size(folder: Path) -> int:
    """Bytes of all regular files below a folder; links are not followed."""
    return measure(folder)[0]


def measure(folder: Path) -> tuple[int, bool]:
    """Bytes of all regular files below a folder, and whether there is a link among them."""
    size, links = 0, False
    for entry in walk(folder):
        links = links or entry.is_symlink()
        size += _entry_size(entry)
    return size, links


def walk(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    """Everything below a folder; links are not followed, and folders that cannot be read are passed over."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            yield entry
            if entry.is_dir(follow_symlinks=False):
                yield from walk(entry.path)


def _entry_size(entry: os.DirEntry[str]) -> int:
    try:
        return 0 if entry.is_dir(follow_symlinks=False) else entry.stat(follow_symlinks=False).st_size
    except OSError:  # deleted just now
        return 0


def escapes(path: Path, folder: Path) -> bool:
    """Whether links make a path below a folder point outside of it."""
    return not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def escaping_links(folder: Path) -> Iterator[str]:
    """The links below a folder that point outside of it, relative to the folder; none is followed."""
    for entry in walk(folder):
        if entry.is_symlink() and escapes(Path(entry.path), folder):
            yield Path(entry.path).relative_to(folder).as_posix()


# Locks


class InUse(ProjectError):
    """Another process works on the project."""


@contextmanager
def locked(folder: Path, name: str) -> Iterator[None]:
    """Hold the lock of the project `name` during the block; raises InUse when another process holds it.

    The lock is a file in `folder` that the system releases when its holder ends, even if it is killed. A note
    beside it says who holds it. On a file system without locks the block runs unprotected.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{name}.lock", timeout=0)
    note = folder / f"{name}.json"
    try:
        lock.acquire()
    except Timeout as error:
        raise InUse(
            f"The project {name!r} is in use{_holder(note)}.",
            Remedy("Wait until that command ends, or stop it."),
        ) from error
    except NotImplementedError:  # older filelock, for ENOSYS
        pass
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    try:
        with suppress(OSError):  # a full disk must not prevent removing a project
            note.write_text(json.dumps(_this_process()), encoding="utf-8")
        yield
    finally:
        note.unlink(missing_ok=True)
        lock.release()


def _this_process() -> dict[str, str | int]:
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    return {"pid": os.getpid(), "host": platform.node(), "command": command, "since": since}


def _holder(note: Path) -> str:
    try:
        holder = json.loads(note.read_text(encoding="utf-8"))
        process = f"process {holder['pid']} on {holder['host']}"
        return f" by {process} since {holder['since']}: {holder['command']}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return " by another process"
