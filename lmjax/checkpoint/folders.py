"""The folder of a checkpoint as files: complete or not, as written or not, published, deleted.

It may be on an object store, where nothing can be renamed: there a checkpoint is written under its own
name from the start, and the marker alone says that it is complete. Knows nothing of what the files
hold, but for the names under which each process writes its own.
"""

import hashlib
import json
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from absl import logging

from lmjax.core.storage import is_remote

CHECKSUMS = 'checksums.json'
_DRAFT = '.tmp'


def checkpoints(folder: Path) -> list[Path]:
  """Folders of checkpoints, good and bad, oldest first."""
  found = folder.iterdir() if folder.is_dir() else ()
  return sorted((path for path in found if path.name.isdigit()), key=lambda path: int(path.name))


def is_complete(path: Path) -> bool:
  """Whether the marker of the checkpoint was written, so everything before it too."""
  return _read_checksums(path) is not None


def find_flaw(path: Path, process: int = 0, processes: int = 1) -> str | None:
  """Why the checkpoint cannot be trusted, or None.

  Args:
    process, processes: which part of its files to read, one of so many; the rest is taken as it is.
  """
  if not path.is_dir():
    return 'there is none'
  checksums = _read_checksums(path)
  if checksums is None:
    return f'its save was not completed (no whole {CHECKSUMS})'

  def find(name: str) -> str | None:
    try:
      matches = _hash(path / name) == checksums[name]
    except OSError as error:
      return f'{name} cannot be read ({error.strerror or error})'
    return None if matches else f'{name} does not match its checksum'

  with ThreadPoolExecutor() as pool:
    flaws = pool.map(
      find, (name for name in checksums if (_writer(name) or 0) % processes == process)
    )
  return next(filter(None, flaws), None)


def draft_of(folder: Path, step: int) -> Path:
  """Where the checkpoint of `step` is written, on a file system before it gets its name."""
  return folder / (str(step) if is_remote(folder) else f'{step}{_DRAFT}')


def make_draft(draft: Path, *below: str) -> None:
  """Makes an empty draft with the folders `below` it, in place of what failed saves left."""
  if is_remote(draft):
    delete(draft)
    return
  clear_drafts(draft.parent)  # a full disk needs the room
  for name in below:
    (draft / name).mkdir(parents=True)


def hash_own(draft: Path, process: int) -> None:
  """Writes the checksums of the shards of `process`, for process 0 to collect."""
  own = _files(draft, below=f'state/ocdbt.process_{process}')
  write(_own_checksums(draft, process), json.dumps({name: _hash(draft / name) for name in own}))


def complete(draft: Path, processes: int) -> None:
  """Writes the marker: the checksums of every file, those of other processes as they left them.

  Raises:
    FileNotFoundError: those of a process are not here.
  """
  own = [_own_checksums(draft, process) for process in range(processes)]
  checksums = {name: text for path in own for name, text in json.loads(path.read_bytes()).items()}
  for path in own:
    path.unlink()
  rest = (name for name in _files(draft) if name not in checksums)
  checksums.update({name: _hash(draft / name) for name in rest})
  write(draft / CHECKSUMS, json.dumps(dict(sorted(checksums.items())), indent=1))


def clear_drafts(folder: Path) -> None:
  """Deals with what a killed or failed save left: a complete draft is published, another deleted."""
  if is_remote(folder):
    return
  for draft in [path for path in folder.glob(f'*{_DRAFT}') if path.stem.isdigit()]:
    if is_complete(draft):
      publish(draft)
    else:
      logging.warning('deleting %s: its save was not completed', draft)
      shutil.rmtree(draft, ignore_errors=True)


def publish(draft: Path) -> None:
  """Gives a complete draft its name, in place of one that has it."""
  if is_remote(draft):
    return
  final = draft.with_suffix('')
  if final.exists():
    delete(final)
  _sync(draft)
  draft.rename(final)
  _sync(final.parent)


def delete(path: Path) -> None:
  """Deletes a checkpoint; its checksums go first, so that half of one never counts as complete."""
  (path / CHECKSUMS).unlink(missing_ok=True)
  if is_remote(path):
    import fsspec

    system, root = fsspec.url_to_fs(str(path))
    names = system.find(root)
    if names:
      system.rm(names)
    return
  shutil.rmtree(path, ignore_errors=True)  # what a reader holds open goes at the next pruning


def write(path: Path, content: str | bytes) -> None:
  """Writes a file and returns when it is on the disk."""
  path.write_bytes(content.encode() if isinstance(content, str) else content)
  _sync(path)


def _writer(name: str) -> int | None:
  """The process whose shards are in the file of this name; None where process 0 wrote it for all."""
  found = re.match(r'state/ocdbt\.process_(\d+)/', name)
  return int(found[1]) if found else None


def _own_checksums(draft: Path, process: int) -> Path:
  return draft / f'{process}.{CHECKSUMS}'


def _files(path: Path, below: str = '') -> list[str]:
  """The names relative to `path` of all files, or those in the folder `below`."""
  import fsspec  # here: it takes 0.1 s, which a start need not wait

  system, root = fsspec.url_to_fs(str(path))
  found = system.find(f'{root}/{below}' if below else root)
  return sorted(name.removeprefix(root).strip('/') for name in found)


def _hash(file: Path) -> str:
  with file.open('rb') as opened:
    return hashlib.file_digest(opened, 'sha256').hexdigest()


def _read_checksums(path: Path) -> dict[str, str] | None:
  try:
    return json.loads((path / CHECKSUMS).read_bytes())
  except (OSError, ValueError):
    return None


def _sync(path: Path) -> None:
  """Returns when the file or folder is on the disk; an object store has it when it says so."""
  if is_remote(path):
    return
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
