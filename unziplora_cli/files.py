"""Writing files: temporary names, flushing, exclusive new names; hashes and sizes of what was written.

Every file is written under a temporary name beside its final one, flushed, renamed, and the folder is
flushed. A process that is killed at any moment leaves the older file or the new one, never a part.

The rule for existing files is the same for every command: a file that exists is refused, and ``--force``
replaces it. A command that writes user-visible files calls `refuse_existing` before it starts to work and
`write_file` afterwards, which takes a name exclusively:

    refuse_existing(paths, force=force)
    write_file(path, save, force=force)                                # one given name
    path = write_file(numbered(folder, "content", ".png"), save)       # the first unused number
"""

import errno
import hashlib
import os
import platform
import re
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unziplora_cli.errors import ProjectError, Remedy, disk_advice

if TYPE_CHECKING:
    from filelock import FileLock

UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF}
"""What file systems answer that cannot flush a folder."""
_NO_LOCKS = UNSUPPORTED | {errno.ENOLCK}
_NO_LINKS = UNSUPPORTED | {errno.EPERM, errno.EACCES, errno.EMLINK, errno.EXDEV}

_OF_WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}

_TEMPORARY = re.compile(r"\..+\.(?P<space>[0-9a-f]{12})-(?P<pid>[0-9]+)-[0-9a-f]{8}\.partial")
_NEW_FOLDER = re.compile(r"\.(.+)\.[0-9a-f]{8}\.partial")
"""A project that is being created."""
_ABANDONED_AFTER = 7 * 24 * 3600
"""Seconds without a change after which a temporary file of another machine counts as abandoned."""

_OTHER_PLACE = Remedy("Choose another place", settings={"out": None})


class NotFlushed(OSError):
    """A file has its name, but its folder could not be flushed."""


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary file name beside `path`; the file replaces `path` when the block succeeds.

    When the block raises, `path` is unchanged. Temporary files of killed processes in the same folder are
    deleted first. An OSError names `path`.
    """
    with _temporary_file(path) as temporary:
        yield temporary
        place(temporary, path, force=True)


def write_file(names: Path | Iterable[Path], write: Callable[[Path], object], *, force: bool = False) -> Path:
    """Let `write` fill a temporary file, and give it the first of `names` that does not exist; returns that.

    With `force` the first name is replaced. Raises ProjectError when all names exist.
    """
    rest = iter((names,) if isinstance(names, Path) else names)
    first = next(rest)
    with _temporary_file(first) as temporary:
        write(temporary)
        return place(temporary, chain([first], rest), force=force)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


def place(file: Path, names: Path | Iterable[Path], *, force: bool = False) -> Path:
    """Flush a file, rename it to the first of `names` that does not exist, and flush the folder.

    The name is taken exclusively: of two processes that ask for the same name, one gets it. With `force` the
    first name is replaced. Returns the name; raises ProjectError when all names exist.
    """
    fsync(file)
    path = file
    for path in (names,) if isinstance(names, Path) else names:
        with suppress(FileExistsError):
            file.replace(path) if force else _rename_exclusively(file, path)
            try:
                fsync(path.parent)
            except OSError as error:
                raise NotFlushed(error.errno, error.strerror, str(path)) from error
            return path
    raise _exists(path)


def _rename_exclusively(file: Path, path: Path) -> None:
    """Rename a file; raises FileExistsError if the new name exists."""
    if os.name == "nt":  # Windows refuses to replace
        file.rename(path)
        return
    try:
        os.link(file, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        path.open("xb").close()  # the one case in which a killed process can leave an empty file
        try:
            file.replace(path)
        except BaseException:
            path.unlink()
            raise
    else:
        file.unlink()


def rename(source: Path, target: Path) -> None:
    """Rename a file or folder, and flush the folders that it left and entered; undone if that fails."""
    source.rename(target)
    try:
        for folder in dict.fromkeys((target.parent, source.parent)):
            fsync(folder)
    except OSError:
        with suppress(OSError):
            target.rename(source)
        raise


def flush_all(folder: Path) -> None:
    """Flush a folder with everything in it; links are passed over."""
    for entry in walk(folder):
        if entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False):
            fsync(Path(entry.path))
    fsync(folder)


@contextmanager
def _temporary_file(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; an OSError of the block names `path`."""
    with naming(path):
        remove_stale(path.parent)
        temporary = path.with_name(_temporary_name(path.name))
        try:
            yield temporary
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError that names no file, or a temporary one, name `path`: writes and flushes name none."""
    try:
        yield
    except OSError as error:
        if error.errno and (
            error.filename is None or _TEMPORARY.fullmatch(Path(os.fsdecode(error.filename)).name)
        ):
            error.filename = str(path)
        raise


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
    try:
        names = [entry.name for entry in folder.iterdir()]
    except PermissionError:  # a folder may be writable without being readable
        return
    for match in filter(None, map(_TEMPORARY.fullmatch, names)):
        from psutil import pid_exists

        path = folder / match[0]
        with suppress(OSError):
            if match["space"] == (_process_space() or None):
                stale = not pid_exists(int(match["pid"]))
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
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":
        return
    try:
        descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
    except PermissionError:
        if is_folder:  # it may be writable without being readable
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
    finally:
        os.close(descriptor)


def _temporary_name(name: str) -> str:
    space = _process_space() or 12 * "0"
    short = os.fsencode(name)[:40].decode("utf-8", "ignore")
    return f".{short}.{space}-{os.getpid()}-{secrets.token_hex(4)}.partial"


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


@contextmanager
def holding(lock: "FileLock") -> Iterator[None]:
    """Hold a lock during the block, where there are locks; raises filelock.Timeout if it is taken."""
    try:
        lock.acquire()
    except NotImplementedError:  # older filelock, for ENOSYS
        pass
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    try:
        yield
    finally:
        with suppress(OSError):  # a process that ends releases it as well
            lock.release()


# New names


def refuse_existing(paths: Iterable[Path], *, force: bool = False) -> None:
    """Raise ProjectError if one of the files exists, unless `force` allows replacing it."""
    for path in paths:
        if os.path.lexists(path) and not force:
            raise _exists(path)


@contextmanager
def claimed_folder(names: Iterable[Path]) -> Iterator[Path]:
    """Create the first of some folders that does not exist; it is removed again if it stays empty."""
    for folder in names:
        with suppress(FileExistsError):
            folder.mkdir()
            break
    try:
        fsync(folder.parent)
        yield folder
    finally:
        with suppress(OSError):
            folder.rmdir()


def numbered(folder: Path, stem: str, suffix: str = "") -> Iterator[Path]:
    """The paths ``stem-001.suffix``, ``stem-002.suffix``, ... in a folder."""
    return (folder / f"{stem}-{number:03d}{suffix}" for number in count(1))


def alternatives(path: Path) -> Iterator[Path]:
    """`path`, then numbered names: another process may take a name while its content is computed."""
    return chain([path], numbered(path.parent, path.stem, path.suffix))


@contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """Create a folder with its parents, where missing; what was created is removed if the block raises."""
    folder = folder.absolute()
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    with write_errors(folder):
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


def write_errors(folder: Path, outcome: str = "", *remedies: Remedy) -> AbstractContextManager[None]:
    """Turn an OSError of using a folder into a ProjectError; see `disk_error`."""
    return translated(lambda error: disk_error(error, folder, outcome, *(remedies or (_OTHER_PLACE,))))


@contextmanager
def translated(describe: Callable[[OSError], ProjectError]) -> Iterator[None]:
    """Raise what `describe` returns for an OSError about files; one of the network or a library passes."""
    try:
        yield
    except OSError as error:
        if not error.errno or isinstance(error, ConnectionError | TimeoutError):
            raise
        raise describe(error) from error


def disk_error(error: OSError, folder: Path, outcome: str = "", *remedies: Remedy) -> ProjectError:
    """The error that names the file, the reason, what is left (`outcome`), and what to do.

    `folder` is named when the system names no file.
    """
    name, verb = error.filename, "access"
    if error.errno in _OF_WRITING:  # of a copy, the target
        name, verb = error.filename2 or name, "write"
    given = Path(folder if name is None else os.fsdecode(name))
    path = Path(*(_NEW_FOLDER.sub(r"\1", part) for part in given.parts if not _TEMPORARY.fullmatch(part)))
    is_written = isinstance(error, NotFlushed) and path == given
    what = f"{path} is written, but may be lost in a power failure" if is_written else f"Cannot {verb} {path}"
    is_gone = isinstance(error, FileNotFoundError) and not path.parent.is_dir()
    reason = "its disk was disconnected, or its folder was deleted" if is_gone else error.strerror or error
    return ProjectError(
        f"{what}: {reason}. {outcome}".strip(), *filter(None, [disk_advice(error)]), *remedies
    )


def _exists(path: Path) -> ProjectError:
    kind = "folder" if path.is_dir() else "file"
    return ProjectError(f"The {kind} {path} already exists.", Remedy("Replace it", settings={"force": True}))


# Reading

MAX_TEXT_SIZE = 64 * 2**20
"""Bytes of the largest manifest, table or preset that is read."""
MAX_IMAGE_SIZE = 4 * 2**30
"""Bytes of the largest image file that is opened."""


@contextmanager
def open_regular(path: Path, limit: int) -> Iterator[BufferedReader]:
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
        size = os.fstat(file.fileno()).st_size
        return file.read(min(limit, 2 * size + 4096) + 1)  # as much memory is allocated as may be read


def read_text(path: Path, limit: int = MAX_TEXT_SIZE) -> str:
    """The same as text; UTF-8, with or without a byte-order mark."""
    return read_bytes(path, limit).decode("utf-8-sig")


def open_safetensors(path: Path, framework: str = "pt") -> Any:
    """Open a safetensors file; raises OSError with the reason, which safetensors hides."""
    from safetensors import safe_open

    try:
        return safe_open(path, framework=framework)
    except (FileNotFoundError, RuntimeError):  # the latter is torch's, which opens the file once more
        path.open("rb").close()
        return safe_open(path, framework=framework)  # the reason has passed


def identify(path: Path) -> tuple[str, Remedy] | None:
    """What a file is that cannot be read as safetensors, and what to do with it; None if unknown."""
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError:
        return None
    if not start:
        return "it is empty", Remedy("Download it again.")
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"version https://git-lfs"):
        remedy = Remedy("Download the file itself", "lfs pull", program="git")
        return "it is a Git LFS pointer, without the weights", remedy
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page", Remedy("Download the file itself; its host may require you to log in.")
    if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return "it is a pickle of PyTorch (.pt, .ckpt, .bin), which can run code when it is opened", Remedy(
            "Convert it to safetensors with the program that made it."
        )
    if start.startswith(b"GGUF"):
        return "it is a GGUF file", Remedy("Use the safetensors file that it was made from.")
    another = "it is a file of another kind", Remedy("Name a file that ends in .safetensors.")
    return None if start[8:9] in (b"{", b"") else another


# Hashes, sizes and links


@dataclass(frozen=True)
class Problem:
    """A file that is missing, changed or unreadable."""

    path: str
    reason: str


def sha256(path: Path, limit: int = 2**63) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal; raises OSError for more than `limit` bytes."""
    with open_regular(path, limit) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size_and_links(folder: Path) -> tuple[int, bool]:
    """Bytes of all regular files below a folder, and whether there is a link, which is not followed."""
    size, links = 0, False
    for entry in walk(folder):
        with suppress(OSError):  # deleted just now
            if entry.is_symlink():
                links = True
            elif entry.is_file():
                size += entry.stat().st_size
    return size, links


def walk(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    """Everything below a folder; links are not followed, and folders that cannot be read are passed over."""
    folders = [folder]
    while folders:
        with suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                yield entry
