"""Bytes from wherever a user keeps them: any place fsspec knows, unpacked by what the bytes say.

Knows nothing about rows or posts beyond which members of a zip archive hold them.
"""

import contextlib
import hashlib
import re
import zipfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from lmjax.core.errors import UserError

if TYPE_CHECKING:
  import fsspec

_EXTRAS = {'s3': 's3', 's3a': 's3', 'gs': 'gcs', 'gcs': 'gcs'}
_COMPRESSED = {b'\x1f\x8b': 'gzip', b'\x28\xb5\x2f\xfd': 'zstd'}
# The posts of a Twitter / X archive, and those of a Mastodon archive.
_POSTS_MEMBER = re.compile(r'(^|/)(tweets?(-part\d+)?\.js|outbox\.json)$')


def matches(pattern: str) -> list[str]:
  """The files that a path or glob pattern names, local or of any protocol that fsspec knows.

  Raises:
    UserError: the place cannot be listed, or `pattern` is a folder.
  """
  with _reached(pattern, 'listed'):
    system, path = _system(pattern)
    if system.isfile(path):
      return [_full_name(system, path)]
    if system.isdir(path):
      raise UserError(f'{pattern} is a folder: name the files in it, as in {pattern.rstrip("/")}/*')
    found = cast(dict[str, Any], system.glob(path, detail=True))
  return [_full_name(system, name) for name, info in found.items() if info['type'] == 'file']


def sha256(path: str) -> str:
  """SHA-256 of the bytes of the file as they lie there, in hex."""
  digest = hashlib.sha256()
  with _opened(path) as file:
    while block := file.read(1 << 20):
      digest.update(block)
  return digest.hexdigest()


def copy(path: str, target: Path) -> str:
  """Writes the bytes of the file to `target`, a local one; returns their SHA-256 in hex."""
  digest = hashlib.sha256()
  with _opened(path) as file, target.open('wb') as written:
    while block := file.read(1 << 20):
      digest.update(block)
      written.write(block)
  return digest.hexdigest()


def streams(path: str) -> Generator[tuple[str, BinaryIO]]:
  """(name for messages, bytes) of a file, unpacked: gzip, zstd, or each member of a zip with posts.

  What a file is packed with is told from its first bytes. A stream is good until the next is taken.
  """
  with _opened(path) as file:
    magic = file.read(4)
    file.seek(0)
    packing = _COMPRESSED.get(magic[:2]) or _COMPRESSED.get(magic)
    if packing:
      import pyarrow

      # Unlike zstandard's own reader, this one notices a file that was cut off.
      with pyarrow.CompressedInputStream(file, packing) as stream:
        yield path, cast(BinaryIO, stream)
    elif magic in (b'PK\x03\x04', b'PK\x05\x06'):
      with zipfile.ZipFile(file) as archive:
        for member in _posts_members(archive, path):
          with archive.open(member) as stream:
            yield f'{path}/{member}', cast(BinaryIO, stream)
    else:
      yield path, file


def numbered_lines(flag: str, path: str) -> list[tuple[int, str]]:
  """(number from 1, line) of the lines of a text file, plain or compressed, that are not blank.

  Raises:
    UserError: it cannot be read, told with the `flag` that names it.
  """
  try:
    text = ''.join(stream.read().decode() for _, stream in streams(path))
  except UserError as error:
    raise UserError(f'--{flag}={path}: {error}') from None
  except (OSError, EOFError, UnicodeDecodeError) as error:
    raise UserError(f'--{flag}={path} cannot be read: {error}: copy it again') from None
  return [(number, line) for number, line in enumerate(text.split('\n'), 1) if line.strip()]


def _posts_members(archive: zipfile.ZipFile, path: str) -> list[str]:
  """The members of `archive` to read: a platform's posts, else its only file."""
  infos = [
    info
    for info in archive.infolist()
    if not info.is_dir() and not re.search(r'(^|/)(__MACOSX/|\.)', info.filename)
  ]
  chosen = [info for info in infos if _POSTS_MEMBER.search(info.filename)] or infos
  if any(info.flag_bits & 1 for info in chosen):
    raise UserError(f'{path} is locked with a password: unpack it and name the files')
  names = sorted(info.filename for info in chosen)
  if not names:
    raise UserError(f'{path} is an empty zip archive: leave it out')
  if len(names) > 1 and not all(map(_POSTS_MEMBER.search, names)):
    raise UserError(
      f'{path} holds {len(names)} files and none is a tweets.js or an outbox.json: '
      'unpack it and name those with posts'
    )
  return names


@contextlib.contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
  with _reached(path, 'opened'):
    system, place = _system(path)
    file = system.open(place, 'rb')
  with file:
    yield cast(BinaryIO, file)


@contextlib.contextmanager
def _reached(path: str, action: str) -> Iterator[None]:
  try:
    yield
  except UserError:
    raise
  except Exception as error:  # What a store raises, without credentials say, is its own affair.
    said = getattr(error, 'strerror', None) or str(error) or type(error).__name__
    raise UserError(
      f'{path} cannot be {action} ({said}): check the address and your rights there'
    ) from error


def _system(url: str) -> tuple['fsspec.AbstractFileSystem', str]:
  """The file system of `url` and the path in it."""
  import fsspec  # here: it takes 0.1 s, which the default posts need not wait

  protocol = url.partition('://')[0]
  try:
    return fsspec.url_to_fs(url)
  except ImportError as error:
    extra = _EXTRAS.get(protocol)
    remedy = f"run pip install 'lmjax[{extra}]'" if extra else f'install it ({error})'
    raise UserError(
      f'{url}: reading {protocol}:// needs a package that is missing: {remedy}'
    ) from None
  except ValueError as error:
    raise UserError(f'{url}: {error}: pass a local path, s3:// or gs://') from None


def _full_name(system: 'fsspec.AbstractFileSystem', path: str) -> str:
  return path if 'file' in system.protocol else system.unstrip_protocol(path)
