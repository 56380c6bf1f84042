"""Images in a folder, a .zip or a .tar, read one by one and never unpacked to disk."""

from __future__ import annotations

import io
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import click

from bench.data import refuse_strange

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
LARGEST = 64 << 20  # bytes of one image; what claims or turns out to be more is no photograph
BROKEN = (OSError, EOFError, ValueError, RuntimeError, tarfile.TarError, zipfile.BadZipFile, zlib.error)


def names(path: Path) -> list[str]:
    """The images in a folder or an archive by their names within it (a/b.png), sorted; ClickException, in one
    sentence, where it cannot be read or holds none.
    """
    with _opened(path) as listing:
        found = sorted(name for name, _ in listing)
    if not found:
        raise click.ClickException(f"{path} holds no images ({', '.join(sorted(SUFFIXES))})")
    return found


def contents(path: Path, wanted: Container[str]) -> Iterator[tuple[str, bytes]]:
    """Name and content of the `wanted` images, in the order in which they are fastest to read."""
    with _opened(path) as listing:
        for name, read in listing:
            if name in wanted:
                yield name, read()


def decoded(content: bytes, where: str) -> Image:
    """The image as RGB; ClickException, in one sentence, where it is none."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as file:
            return file.convert("RGB")
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise click.ClickException(
            f"{where} cannot be read as an image ({error}): remove or replace it"
        ) from None


@contextmanager
def _opened(path: Path) -> Iterator[Iterator[tuple[str, object]]]:
    """The images of a place, as pairs of a name and a function that reads it."""
    if not path.exists():
        raise click.ClickException(f"there is no file or folder {path}")
    if not path.is_dir():
        refuse_strange(path)
    try:
        if path.is_dir():
            yield _in_folder(path)
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                yield _in_zip(archive, path)
        else:
            with tarfile.open(path) as archive:
                yield _in_tar(archive, path)
    except (*BROKEN, lzma.LZMAError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise click.ClickException(
            f"{path} cannot be read ({reason}): give a folder of images, or a whole .zip or .tar of them"
        ) from None


def _in_folder(path: Path) -> Iterator[tuple[str, object]]:
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        if _is_image(name) and file.is_file():
            yield name, lambda file=file, name=name: _read(file.open("rb"), name, path)


def _in_zip(archive: zipfile.ZipFile, path: Path) -> Iterator[tuple[str, object]]:
    for member in archive.infolist():
        link = stat.S_ISLNK(member.external_attr >> 16)
        _refuse_strange(member.filename, member.file_size, link, path)
        if not member.is_dir() and _is_image(member.filename):
            yield member.filename, lambda member=member: _read(archive.open(member), member.filename, path)


def _in_tar(archive: tarfile.TarFile, path: Path) -> Iterator[tuple[str, object]]:
    for member in archive:
        _refuse_strange(member.name, member.size, member.issym() or member.islnk(), path)
        if member.isfile() and _is_image(member.name):
            yield member.name, lambda member=member: _read(archive.extractfile(member), member.name, path)


def _read(file, name: str, path: Path) -> bytes:
    with file:
        content = file.read(LARGEST + 1)
    _refuse_strange(name, len(content), False, path)
    return content


def _refuse_strange(name: str, size: int, link: bool, path: Path) -> None:
    parts = PurePosixPath(name.replace("\\", "/"))
    if link or parts.is_absolute() or ".." in parts.parts:
        what = "a link" if link else "a file outside itself"
        raise click.ClickException(f"{path} holds {what} ({name}), which no archive of images needs: refused")
    if size > LARGEST and _is_image(name):
        raise click.ClickException(f"{name} in {path} is larger than {LARGEST >> 20} MiB: refused")


def _is_image(name: str) -> bool:
    parts = PurePosixPath(name)
    hidden = parts.name.startswith("._") or "__MACOSX" in parts.parts  # what macOS adds to archives
    return parts.suffix.lower() in SUFFIXES and not hidden
