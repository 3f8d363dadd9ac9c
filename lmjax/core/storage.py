"""Workdirs on object stores: `--workdir=s3://bucket/run`, gs:// too; file:// is a folder.

Tasks write to a folder, and so a run on s3:// has one in the cache, its mirror. Its files, all small,
are fetched at the start, and those that changed are copied up at every save and at the end, by process
0 alone. Checkpoints never lie in the mirror: every process writes its own part of them to the store.
A store has no locks: `owner.json` says who writes there, renewed while that process runs. Knows
nothing of what the files hold.
"""

import contextlib
import hashlib
import json
import os
import platform
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from absl import logging

from lmjax.core.assets import cache_folder
from lmjax.core.errors import UserError

if TYPE_CHECKING:
  import fsspec

_EXTRAS = {'s3': 's3', 'gs': 'gcs'}
_REMOTE, _SYNCED, _LOCK, _OWNER, _CHECKPOINTS = (
  '.remote',  # of a mirror: the address
  '.synced',  # as old as the last look for what has changed
  'lock',
  'owner.json',
  'checkpoints',
)
_RENEW_SECONDS = 20.0
_WATCH_SECONDS = 50.0  # without a renewal, and the owner counts as gone
_OWNED_SECONDS = 90.0  # and after so many, whatever the clocks of two hosts differ by


def at(address: str) -> Path:
  """The path of an address: a folder, or one on s3:// or gs:// with the methods of a folder's.

  Raises:
    UserError: it is of another kind, or what reads that kind is not installed.
  """
  protocol, separator, rest = address.partition('://')
  if not separator:
    return Path(address)
  if protocol == 'file':
    return Path(rest)
  if protocol not in _EXTRAS:
    raise UserError(
      f'{address}: {protocol}:// is not known: pass a folder, s3://, gs:// or file://'
    )
  from etils import epath

  _system(address)
  return cast(Path, epath.Path(address.rstrip('/')))


def is_remote(path: Path) -> bool:
  """Whether the path is on an object store."""
  return '://' in str(path)


def mirror(address: str) -> Path:
  """The folder to work in for a `--workdir`: itself, or the mirror of one on an object store."""
  path = at(address)
  if not is_remote(path):
    return path
  digest = hashlib.sha256(str(path).encode()).hexdigest()[:12]
  folder = cache_folder() / 'workdirs' / f'{path.name}-{digest}'
  folder.mkdir(parents=True, exist_ok=True)
  file = folder / _REMOTE
  if not (file.exists() and file.read_text() == str(path)):  # a run under way may be reading it
    file.write_text(str(path))
  return folder


def origin(workdir: Path) -> Path:
  """Where a workdir is kept: itself, or what it mirrors."""
  file = workdir / _REMOTE
  return at(file.read_text()) if file.exists() else workdir


@contextlib.contextmanager
def mirrored(workdir: Path) -> Iterator[None]:
  """Holds what `workdir` mirrors for the block: fetched before, copied up after.

  Raises:
    UserError: another process holds it, or it cannot be reached or written.
  """
  if origin(workdir) == workdir:
    yield
    return
  remote = _Remote(workdir)
  with remote.owned():
    remote.fetch()
    try:
      yield
    finally:
      remote.send()


def sync(workdir: Path) -> None:
  """Copies up the files of a mirror that have changed since; of another workdir, none."""
  if origin(workdir) != workdir:
    _Remote(workdir).send()


class _Remote:
  """What a mirror mirrors."""

  def __init__(self, folder: Path) -> None:
    self._folder = folder
    self._address = str(origin(folder))
    self._system, self._root = _system(self._address)

  @contextlib.contextmanager
  def owned(self) -> Iterator[None]:
    """Keeps others out for the block."""
    with _reached(self._address):
      self._claim()
    ended = threading.Event()
    renewing = threading.Thread(target=self._renew, args=(ended,), name='owner', daemon=True)
    renewing.start()
    try:
      yield
    finally:
      ended.set()
      renewing.join()
      with _reached(self._address):
        self._system.rm_file(self._name(_OWNER))

  def fetch(self) -> None:
    """Makes the mirror what is there."""
    for path in self._folder.iterdir():
      if path.is_dir():
        shutil.rmtree(path)
      elif path.name not in (_REMOTE, _LOCK):
        path.unlink()
    with _reached(self._address):
      for name in self._names():
        target = self._folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        self._system.get_file(self._name(name), str(target))
    (self._folder / _SYNCED).touch()

  def send(self) -> None:
    """Copies up what has changed since it was last looked for."""
    stamp = self._folder / _SYNCED
    before = stamp.stat().st_mtime_ns
    now = stamp.with_name(f'{_SYNCED}.now')  # of the clock of the files, which a server may set
    now.touch()
    with _reached(self._address):
      for path in sorted(self._folder.rglob('*')):
        known = path.name.startswith('.') or path.name == _LOCK or path.is_dir()
        if not known and path.stat().st_mtime_ns >= before:
          self._system.pipe_file(
            self._name(path.relative_to(self._folder).as_posix()), path.read_bytes()
          )
    now.replace(stamp)

  def _names(self) -> list[str]:
    """The files there but for the checkpoints, which may be many and large."""
    try:
      listed = self._system.ls(self._root, detail=True)
    except FileNotFoundError:
      return []
    found = [entry['name'] for entry in listed if entry['type'] == 'file']
    for entry in listed:
      if entry['type'] == 'directory' and Path(entry['name']).name != _CHECKPOINTS:
        found += self._system.find(entry['name'])
    names = (name.removeprefix(self._root).strip('/') for name in found)
    return [name for name in names if name and name != _OWNER]

  def _name(self, name: str) -> str:
    return f'{self._root}/{name}'

  def _claim(self) -> None:
    """Becomes the owner; of one that may be there yet, waits to see whether it renews."""
    owner = self._owner()
    if owner and not _has_ended(owner) and time.time() - owner['renewed'] < _OWNED_SECONDS:
      who = f'process {owner["process"]} of {owner["host"]}'
      print(
        f'{self._address} was in use by {who}: waiting up to {_WATCH_SECONDS:.0f} s', flush=True
      )
      deadline = time.monotonic() + _WATCH_SECONDS
      while time.monotonic() < deadline and (now := self._owner()):
        if now != owner:
          raise UserError(f'{self._address} is in use by {who}: stop it or pass another --workdir')
        time.sleep(_WATCH_SECONDS / 40)
    self._own()

  def _own(self) -> None:
    mine = {'host': platform.node(), 'process': os.getpid(), 'renewed': time.time()}
    self._system.pipe_file(self._name(_OWNER), json.dumps(mine).encode())

  def _owner(self) -> dict[str, Any]:
    try:
      return json.loads(self._system.cat_file(self._name(_OWNER)))
    except (FileNotFoundError, ValueError):
      return {}

  def _renew(self, ended: threading.Event) -> None:
    while not ended.wait(_RENEW_SECONDS):
      try:
        self._own()
      except Exception as error:  # a store that is away for a moment costs a renewal, not the run
        logging.warning('%s/%s cannot be renewed: %s', self._address, _OWNER, error)


def _has_ended(owner: dict[str, Any]) -> bool:
  """Whether the owner was a process of this host that is there no more."""
  if owner['host'] != platform.node():
    return False
  if owner['process'] == os.getpid():
    return True  # of a container that was started again
  try:
    os.kill(owner['process'], 0)
  except ProcessLookupError:
    return True
  except PermissionError:
    return False
  return False


def _system(address: str) -> tuple['fsspec.AbstractFileSystem', str]:
  """The file system of an address and the path in it."""
  import fsspec  # here: it takes 0.1 s, which a run in a folder need not wait
  from fsspec.config import conf

  protocol = address.partition('://')[0]
  for name in ('s3', 'gs', 'gcs'):  # other processes write there too
    conf.setdefault(name, {})['use_listings_cache'] = False
  try:
    system, path = fsspec.url_to_fs(address)
  except ImportError:
    raise UserError(
      f'{address} needs a package that is not installed: '
      f"run pip install 'lmjax[{_EXTRAS[protocol]}]'"
    ) from None
  return system, path.rstrip('/')


@contextlib.contextmanager
def _reached(address: str) -> Iterator[None]:
  """UserError about what a store refuses."""
  try:
    yield
  except UserError:
    raise
  except Exception as error:  # what a store raises is its own affair
    kind = type(error).__name__
    said = str(error).splitlines()[0] if str(error) else kind
    if isinstance(error, FileNotFoundError):
      remedy = 'make the bucket, or pass another --workdir'
    elif isinstance(error, PermissionError) or 'Credential' in kind:
      remedy = (
        'log in (aws configure, gcloud auth application-default login) with rights to write there'
      )
    else:
      remedy = 'check the network, and AWS_ENDPOINT_URL if it is not the usual store'
    raise UserError(f'{address} cannot be used ({said}): {remedy}') from error
