"""URIs of files as Java and QuPath write them: POSIX, Windows drives, network shares; and what they are here."""

from __future__ import annotations

import os
import posixpath
import re
import unicodedata
from pathlib import Path, PurePath, PureWindowsPath
from urllib.parse import quote, unquote, urlsplit

_SAFE = "/:@!$&'()*+,;=~"  # what Java leaves as it is in a path
_DRIVE = re.compile(r"^/?[A-Za-z]:(?=[/\\]|$)")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")


def absolute(path: Path) -> Path:
    """Absolute path without ``..``, links left as they are."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - Path.resolve would follow links


def to_uri(path: PurePath | str) -> str:
    """Make the ``file:`` URI of an absolute path, as Java writes it.

    Parameters
    ----------
    path
        POSIX or Windows, or what `uri_path` gives.

    Returns
    -------
    str
        ``file:/a/b%20c``, ``file:/C:/a``, ``file://server/share/a``. All but ASCII is percent-encoded, as a
        file system of bytes needs; QuPath and `uri_path` read both forms.
    """
    text = path.as_posix() if isinstance(path, PurePath) else path
    windows = isinstance(path, PureWindowsPath) or is_windows(text)
    if windows and _DRIVE.match(text) and not text.startswith("/"):
        text = "/" + text
    encoded = quote(text, safe=_SAFE, errors="surrogateescape")
    if windows and text.startswith("//"):
        # a host that Java takes for none, as my_server or wsl$, stays part of the path
        host = text[2:].split("/", 1)[0]
        return f"file:{encoded}" if _HOST.fullmatch(host) else f"file://{encoded}"
    return "file:" + ("/" + encoded.lstrip("/") if text.startswith("/") else encoded)


def uri_path(uri: str) -> str | None:
    """Path of a ``file:`` URI or a bare path, with forward slashes; None for other URIs.

    Returns
    -------
    str or None
        ``/a/b``, ``/C:/a`` on a Windows drive, ``//server/share/a`` on a network share.
    """
    if _DRIVE.match(uri) or uri.startswith("\\\\"):
        text = uri.replace("\\", "/")
        return text if text.startswith("/") else "/" + text
    if "://" not in uri and not uri.lower().startswith("file:"):
        return uri  # QuPath takes a bare path, with a warning
    try:
        parts = urlsplit(uri)
    except ValueError:
        return None
    if parts.scheme.lower() != "file":
        return None
    host = parts.netloc
    if host and not _DRIVE.match(host):
        host = "" if host.lower() == "localhost" else f"//{unquote(host)}"
    elif host:
        host = f"/{host}"
    # a URI that was not encoded may hold ? and #
    rest = parts.path + (f"?{parts.query}" if parts.query else "") + (f"#{parts.fragment}" if parts.fragment else "")
    return host + unquote(rest, errors="surrogateescape")


def is_windows(path: str) -> bool:
    """Whether what `uri_path` gives, or a path as people write it, is of a Windows drive or a network share."""
    return bool(_DRIVE.match(path)) or path.startswith(("//", "\\\\"))


def local_path(path: str) -> Path:
    """Path on this machine of what `uri_path` gives."""
    if os.name == "nt" and _DRIVE.match(path):
        path = path.removeprefix("/")
    return Path(path)


def exists(path: Path) -> bool:
    """Whether a file is there; a drive that fails, or a name that no file can have, is no file."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def file_name(path: str) -> str:
    """Name at the end of what `uri_path` gives."""
    return path.rstrip("/").rsplit("/", 1)[-1]


def same_name(name: str) -> str:
    """What is equal for names that one file may have on different systems (capitals, composed accents)."""
    return unicodedata.normalize("NFC", name).casefold()


def resolve(uri: str, recorded_project: str | None, folder: Path) -> Path | None:
    """Find the image of an entry.

    Parameters
    ----------
    uri
        Of the image, as the project has it.
    recorded_project
        URI that the project file has of itself, from where it was saved.
    folder
        Where the project is now.

    Returns
    -------
    Path or None
        The image where the URI says; when it is not there, the same place relative to the project if it is
        there, otherwise what the URI says. None when the URI is not of a file.
    """
    path = uri_path(uri)
    if path is None:
        return None
    said = local_path(path)
    if exists(said):
        return said
    moved = beside(path, recorded_project, folder)
    return moved if moved is not None and exists(moved) else said


def beside(path: str, recorded_project: str | None, folder: Path) -> Path | None:
    """Place that is to a project here what `path` was to the project where it was saved; None when there is none."""
    home = uri_path(recorded_project) if recorded_project else None
    if home is None or not path.startswith("/") or not home.startswith("/"):
        return None
    if _root(path) != _root(home):
        return None
    below = posixpath.relpath(path, posixpath.dirname(home))
    if is_windows(path) and below.startswith(".."):  # capitals mean nothing there
        below = posixpath.relpath(_same_case(path, home), posixpath.dirname(home))
    return Path(os.path.normpath(folder / below))


def _same_case(path: str, model: str) -> str:
    """The path, its beginning in the capitals of another where they are equal but for those."""
    parts, others = path.split("/"), model.split("/")
    for i, (a, b) in enumerate(zip(parts, others, strict=False)):
        if a.casefold() != b.casefold():
            break
        parts[i] = b
    return "/".join(parts)


def _root(path: str) -> str:
    """Drive or share of a path, "" on POSIX."""
    if _DRIVE.match(path):
        return path.lstrip("/")[:2].lower()
    return "/".join(path.split("/")[:4]).lower() if path.startswith("//") else ""


def remap(path: str, old: str, new: str) -> str | None:
    """Put a new beginning in place of an old one.

    Parameters
    ----------
    path
        What `uri_path` gives.
    old, new
        Folders as people write them, POSIX or Windows (``C:\\slides``, ``\\\\server\\share``), or URIs.

    Returns
    -------
    str or None
        As `uri_path` gives; None when the path does not begin with the old folder.
    """
    begin, put = _folder(old), _folder(new)
    a, b = (path.casefold(), begin.casefold()) if is_windows(begin) else (path, begin)
    if a != b and not a.startswith(b + "/"):
        return None
    return put + path[len(begin) :]


def length(folder: str) -> int:
    """How much of a path a folder names; the longest of several that fit is meant."""
    return len(_folder(folder))


def _folder(text: str) -> str:
    path = uri_path(text)
    return (text if path is None else path).rstrip("/")
