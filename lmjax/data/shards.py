"""Tokenised posts on disk: the only writer of shards, and their random-access reader.

A prepared corpus is a folder:

    manifest.json            what is in it, by hash; its own hash is the identity of the data
    tokenizer.json
    notes.json               sentences about rows that were dropped (paths, so outside the identity)
    {part}.lengths.npy       u32 tokens of each post, memory-mapped
    {part}-00000.array_record, ...   one record a post: its token ids, little-endian u16 or u32

It may also lie on s3:// or gs:// (`open_shards`): its files are then fetched into the cache, each when
it is first read and checked against the manifest, so a host holds no more than it reads.

Posts stand in the order of a content hash, so neighbours are a random sample and the order of the
files that were read does not matter. Knows nothing about where posts come from, rows or batches.
"""

import functools
import hashlib
import itertools
import json
import os
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from lmjax.core.assets import cache_folder
from lmjax.core.errors import UserError
from lmjax.core.storage import at, is_remote
from lmjax.core.task import write_json
from lmjax.data import files
from lmjax.data.split import PARTS, Part
from lmjax.data.tokenizer import Tokenizer

SCHEMA = 2  # raise it when the same posts and settings come to give other files
SHARD_BYTES = 128 << 20
# Sixteen posts a group cost 4 bytes a post where one a group costs 53, and are read faster: several
# groups lie in one page of the file anyway (measured on a million posts of 64 bytes).
_WRITER = 'group_size:16,uncompressed'
_READER = 'readahead_buffer_size:0'
_READER_BYTES = 4096  # read a record with the page around it, not with megabytes of the file
_OPEN_SHARDS = 256
_BATCH = 4096

T = TypeVar('T')


class Shards:
  """A prepared corpus, open for random access by any number of threads.

  Opening reads the manifest and nothing a post, so it takes milliseconds at any size.

  Attributes:
    folder: where it lies, or what was fetched of the one at `origin` lies.
    manifest: `schema, source, settings, rows, parts, token_bytes, tokenizer_sha256`.
    sha256: hash of the manifest, which holds the hash of everything else.
    bytes_read: bytes of records read so far.
  """

  def __init__(self, folder: Path, origin: str | None = None) -> None:
    text = (folder / 'manifest.json').read_bytes()
    self.folder = folder
    self._origin = origin
    self.manifest: dict[str, Any] = json.loads(text)
    self.sha256 = hashlib.sha256(text).hexdigest()
    self.bytes_read = 0
    self._dtype = np.dtype(f'<u{self.manifest["token_bytes"]}')
    self._lock = threading.Lock()
    self._reader = functools.lru_cache(_OPEN_SHARDS)(_open)
    self._mapped = functools.cache(_map)

  @functools.cached_property
  def tokenizer(self) -> Tokenizer:
    """The tokenizer of the token ids."""
    return Tokenizer.load(self._file('tokenizer.json', self.manifest['tokenizer_sha256']))

  @property
  def notes(self) -> list[str]:
    """Sentences about the rows that were dropped when the posts were read."""
    return json.loads(self._file('notes.json').read_text(encoding='utf-8'))

  def posts(self, part: Part) -> int:
    """Number of posts in `part`."""
    return self.manifest['parts'][part]['posts']

  def lengths(self, part: Part) -> np.ndarray:
    """u32 tokens of each post of `part`, memory-mapped."""
    described = self.manifest['parts'][part]['lengths']
    return self._mapped(self._file(described['file'], described['sha256']))

  def read(self, part: Part, indices: Sequence[int] | np.ndarray) -> list[np.ndarray]:
    """The token ids of the posts at `indices`, in that order, without start and end."""
    indices = np.asarray(indices, np.int64)
    described = self.manifest['parts'][part]['shards']
    ends = np.cumsum([file['posts'] for file in described], dtype=np.int64)
    shards = np.searchsorted(ends, indices, 'right')
    found: list[np.ndarray] = [np.empty(0)] * len(indices)
    for shard in np.unique(shards).tolist():
      places = np.flatnonzero(shards == shard)
      within = indices[places] - (ends[shard] - described[shard]['posts'])
      for place, record in zip(places, self._records(described[shard], within), strict=True):
        found[place] = np.frombuffer(record, self._dtype)
    if [len(tokens) for tokens in found] != self.lengths(part)[indices].tolist():
      raise self._damaged(_lengths_name(part), 'a post has not the length that it says')
    return found

  def texts(self, part: Part) -> Iterator[str]:
    """The texts of `part`, decoded one after another."""
    return map(self.tokenizer.text, self.stream(part))

  def stream(self, part: Part) -> Iterator[np.ndarray]:
    """The token ids of every post of `part` in order, without start and end."""
    for batch in _batches(range(self.posts(part))):
      yield from self.read(part, batch)

  def _records(self, shard: dict[str, Any], positions: np.ndarray) -> list[bytes]:
    file = shard['file']
    path = self._file(file, shard['sha256'])
    try:
      records = self._reader(path).read(positions.tolist())
    except (IndexError, RuntimeError, ValueError) as error:  # what array_record makes of bad bytes
      raise self._damaged(file, str(error)) from error
    with self._lock:
      self.bytes_read += sum(map(len, records))
    return records

  def _file(self, name: str, sha256: str | None = None) -> Path:
    """The file of that name, fetched where it is not here yet."""
    path = self.folder / name
    if self._origin is None or path.exists():
      return path
    draft = self.folder / f'.{name}.{os.getpid()}.{threading.get_ident()}'
    try:
      if files.copy(f'{self._origin}/{name}', draft) != sha256 and sha256 is not None:
        raise UserError(
          f'{self._origin}/{name} is not what its manifest says: copy the corpus there again'
        )
      os.replace(draft, path)
    finally:
      draft.unlink(missing_ok=True)
    return path

  def _damaged(self, file: str, reason: str) -> UserError:
    return UserError(
      f'{self.folder / file} is damaged ({reason}): delete {self.folder} to have it prepared again'
    )


def open_shards(address: str) -> Shards:
  """The prepared corpus in a folder, or in one on s3:// or gs://, of which the cache keeps a part.

  Raises:
    UserError: there is none, or it cannot be read.
  """
  if not is_remote(at(address)):
    return Shards(at(address))
  corpora = cache_folder() / 'corpora'
  corpora.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=corpora) as scratch:
    manifest = Path(scratch) / 'manifest.json'
    folder = corpora / files.copy(f'{address}/manifest.json', manifest)
    folder.mkdir(exist_ok=True)
    os.replace(manifest, folder / manifest.name)
  return Shards(folder, address)


def write_part(
  folder: Path, part: Part, texts: Iterable[str], posts: int, tokenizer: Tokenizer
) -> dict[str, Any]:
  """Tokenises the `posts` texts of a part into `folder`; returns its entry of the manifest."""
  path = folder / _lengths_name(part)
  lengths = np.lib.format.open_memmap(path, 'w+', np.dtype('<u4'), (posts,))
  dtype = np.dtype(f'<u{_token_bytes(tokenizer)}')
  done = size = 0
  with _ShardWriter(folder, part) as writer:
    for batch in _batches(texts):
      records = tokenizer.encode_batch(batch)
      lengths[done : done + len(batch)] = [len(record) for record in records]
      done += len(batch)
      size += sum(len(text.encode()) for text in batch)
      for record in records:
        writer.write(record.astype(dtype).tobytes())
  assert done == posts, f'{part} has {done} texts where {posts} were counted'
  lengths.flush()
  return {
    'posts': posts,
    'tokens': int(lengths.sum(dtype=np.int64)),
    'bytes': size,
    'lengths': _described(path),
    'shards': writer.shards,
  }


def write_manifest(
  folder: Path, tokenizer: Tokenizer, described: dict[str, Any], notes: Sequence[str]
) -> None:
  """Writes what makes `folder` whole: tokenizer, notes and, last, the manifest.

  Args:
    folder: holds the files of every part already.
    tokenizer: what the parts were written with.
    described: `source`, `settings`, `rows` and `parts` of the manifest.
    notes: sentences about rows that were dropped.
  """
  tokenizer.save(folder / 'tokenizer.json')
  write_json(folder / 'notes.json', list(notes))
  own = {'token_bytes': _token_bytes(tokenizer), 'tokenizer_sha256': tokenizer.sha256}
  write_json(folder / 'manifest.json', {'schema': SCHEMA, **described, **own})


def is_complete(folder: Path) -> bool:
  """Whether `folder` is a whole corpus: its manifest parses and every file is there, in its size.

  Bytes that changed within a file are found when they are read: records carry checksums, and
  lengths are compared with the records.
  """
  try:
    manifest = json.loads((folder / 'manifest.json').read_bytes())
    parts = [manifest['parts'][part] for part in PARTS]
    listed = [file for part in parts for file in (*part['shards'], part['lengths'])]
    tokenizer = hashlib.sha256((folder / 'tokenizer.json').read_bytes()).hexdigest()
    return (
      all((folder / file['file']).stat().st_size == file['size'] for file in listed)
      and tokenizer == manifest['tokenizer_sha256']
      and (folder / 'notes.json').exists()
    )
  except (OSError, ValueError, KeyError, TypeError):
    return False


class _ShardWriter:
  """Writes records to `{part}-00000.array_record` and on, a new file every `SHARD_BYTES`."""

  def __init__(self, folder: Path, part: Part) -> None:
    self.shards: list[dict[str, Any]] = []
    self._folder, self._part = folder, part
    self._writer: Any = None
    self._posts = self._bytes = 0

  def __enter__(self) -> '_ShardWriter':
    return self

  def __exit__(self, *_: object) -> None:
    if self._writer is not None:
      self._close()

  def write(self, record: bytes) -> None:
    if self._writer is None:
      self._writer = ArrayRecordWriter(str(self._path), _WRITER)
    self._writer.write(record)
    self._posts += 1
    self._bytes += len(record)
    if self._bytes >= SHARD_BYTES:
      self._close()

  @property
  def _path(self) -> Path:
    return self._folder / f'{self._part}-{len(self.shards):05d}.array_record'

  def _close(self) -> None:
    self._writer.close()
    self.shards.append({**_described(self._path), 'posts': self._posts})
    self._writer, self._posts, self._bytes = None, 0, 0


def _open(path: Path) -> Any:
  return ArrayRecordReader(str(path), options=_READER, file_reader_buffer_size=_READER_BYTES)


def _map(path: Path) -> np.ndarray:
  return np.load(path, mmap_mode='r')


def _lengths_name(part: Part) -> str:
  return f'{part}.lengths.npy'


def _token_bytes(tokenizer: Tokenizer) -> int:
  return 2 if tokenizer.vocab <= 1 << 16 else 4


def _described(path: Path) -> dict[str, Any]:
  with path.open('rb') as file:
    digest = hashlib.file_digest(file, 'sha256').hexdigest()
  return {'file': path.name, 'size': path.stat().st_size, 'sha256': digest}


def _batches(items: Iterable[T]) -> Iterator[list[T]]:
  items = iter(items)
  while batch := list(itertools.islice(items, _BATCH)):
    yield batch
