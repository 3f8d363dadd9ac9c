"""Checkpoints of a run: saved in the background, verified when read, restored onto any mesh.

    1200/state/           every array of the state by its path, as orbax writes them
    1200/config.json ...  the files that belong to the run
    1200/extra.json       what the caller saved beside the state
    1200/checksums.json   SHA-256 of each file above; written last, so without it a save is unfinished
    1600.tmp/             a save under way, renamed to 1600 when it is complete

The one file that knows orbax. Knows nothing about models, optimizers or how layers are laid out: a
state is a pytree of arrays, and its paths are the names in the checkpoint.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
from absl import logging
from jax.sharding import SingleDeviceSharding

from lmjax.core import tree
from lmjax.core.config import Config, leaf
from lmjax.core.errors import UserError
from lmjax.core.types import Params

if TYPE_CHECKING:
  import orbax.checkpoint as ocp

_STATE, _EXTRA, _CHECKSUMS = 'state', 'extra.json', 'checksums.json'


class CheckpointError(UserError):
  """A checkpoint that cannot be restored as asked, and what to do."""


class Checkpoint(Config):
  """When to save and which checkpoints to keep."""

  every_steps: int = leaf(200, 'Steps between saves.', low=1, run=True)
  keep_latest: int = leaf(2, 'How many of the latest checkpoints to keep.', low=1, run=True)
  keep_every: int | None = leaf(
    None, 'Also keep each checkpoint whose step is a multiple of this.', low=1, run=True
  )


class Restored(NamedTuple):
  """What `Store.restore` found: the state, what was saved beside it, and its step."""

  state: Any
  extra: dict[str, Any]
  step: int


class Store:
  """The checkpoints of one run, below one folder that nothing else writes to.

  Close it, or open it with `with`: Python finishes no save once the main thread has ended.

  Args:
    folder: where they are; made at the first save.
    keep_latest, keep_every: see `Checkpoint`.
    files: name -> content of the files to put in every checkpoint.
  """

  def __init__(
    self,
    folder: Path,
    *,
    keep_latest: int,
    keep_every: int | None,
    files: Mapping[str, str | bytes],
  ) -> None:
    self._folder = folder.absolute()
    self._keep_latest = keep_latest
    self._keep_every = keep_every
    self._files = files
    self._passed_over: set[int] = set()
    self._pending: Future[None] | None = None
    self._worker = ThreadPoolExecutor(1, thread_name_prefix='checkpoint')
    # Importing orbax takes 0.4 s, here beside the compilation of the first step.
    self._checkpointer = self._worker.submit(_open_checkpointer)
    _clear_drafts(self._folder)

  def __enter__(self) -> 'Store':
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def save(self, step: int, state: Any, extra: dict[str, Any]) -> None:
    """Begins to save; returns when `state` may be donated. An earlier save is waited for first.

    Args:
      step: names the checkpoint; one of the same step is replaced.
      state: a pytree of arrays.
      extra: JSON values to save beside it.
    """
    import orbax.checkpoint as ocp

    self.wait()
    beside = {**self._files, _EXTRA: json.dumps(extra)}
    _clear_drafts(self._folder)  # a full disk needs the room that a failed save took
    draft = self._folder / f'{step}.tmp'
    draft.mkdir(parents=True)
    arrays = dict(tree.paths(state))
    self._checkpointer.result().save(draft / _STATE, args=ocp.args.PyTreeSave(arrays))
    self._pending = self._worker.submit(self._commit, step, draft, beside)

  def wait(self) -> None:
    """Returns when the last save is complete; raises what went wrong in it."""
    pending, self._pending = self._pending, None
    if pending is not None:
      pending.result()

  def close(self) -> None:
    """Waits as `wait` does and stops the background thread."""
    try:
      self.wait()
    finally:
      self._worker.shutdown()
      self._checkpointer.result().close()

  def steps(self) -> list[int]:
    """Steps of the complete checkpoints, oldest first, without those found corrupted."""
    complete = [int(path.name) for path in _checkpoints(self._folder) if _is_complete(path)]
    return [step for step in complete if step not in self._passed_over]

  def latest(self) -> int | None:
    """The newest of `steps`."""
    return max(self.steps(), default=None)

  def restore(self, abstract_state: Any, step: int | None = None) -> Restored | None:
    """The newest checkpoint whose every file is as it was written, or None without any.

    Args:
      abstract_state: a pytree of `jax.ShapeDtypeStruct` with shardings, on any mesh.
      step: restore this one, and no other.

    Raises:
      CheckpointError: it holds other arrays than `abstract_state`, or `step` is not there whole.
    """
    self.wait()
    path = self._find_newest() if step is None else self._find_step(step)
    if path is None:
      return None
    state = _load(path, abstract_state)
    return Restored(state, json.loads((path / _EXTRA).read_bytes()), int(path.name))

  def _find_newest(self) -> Path | None:
    path = find_checkpoint(self._folder)
    found = -1 if path is None else int(path.name)
    steps = [int(other.name) for other in _checkpoints(self._folder)]
    self._passed_over = {step for step in steps if step > found}
    return path

  def _find_step(self, step: int) -> Path:
    path = self._folder / str(step)
    flaw = _find_flaw(path)
    if flaw is not None:
      self._passed_over.add(step)
      others = ', '.join(map(str, self.steps())) or 'none'
      raise CheckpointError(
        f'step {step} in {self._folder} cannot be restored, {flaw}: steps to choose from are {others}'
      )
    return path

  def _commit(self, step: int, draft: Path, beside: Mapping[str, str | bytes]) -> None:
    self._checkpointer.result().wait_until_finished()
    for name, content in beside.items():
      _write(draft / name, content)
    _write(draft / _CHECKSUMS, json.dumps(_checksums(draft), indent=1))
    _publish(draft)
    self._passed_over.discard(step)
    self._prune(step)

  def _prune(self, newest: int) -> None:
    """Deletes all but the checkpoints to keep, of which `newest`, just completed, is one."""
    good = self.steps()
    kept = {newest, *good[-self._keep_latest :]}
    if self._keep_every is not None:
      kept.update(step for step in good if step % self._keep_every == 0)
    for path in _checkpoints(self._folder):
      if int(path.name) not in kept:
        _delete(path)


def find_checkpoint(folder: Path) -> Path | None:
  """The newest checkpoint below `folder` whose every file is as it was written; writes nothing."""
  for path in reversed(_checkpoints(folder)):
    flaw = _find_flaw(path)
    if flaw is None:
      return path
    logging.warning('passing over checkpoint %s: %s', path, flaw)
  return None


def restore_params(path: Path, abstract_params: Params) -> Params:
  """The parameters alone of one checkpoint, such as `find_checkpoint` returns.

  Args:
    path: the folder of the checkpoint; its files are taken as they are.
    abstract_params: nested dict of `jax.ShapeDtypeStruct`; one without a sharding goes to the
      first device.
  """
  return _load(path, abstract_params, within='params/')


def _open_checkpointer() -> 'ocp.AsyncCheckpointer':
  import orbax.checkpoint as ocp

  # Compressing 120 MB of f32 noise takes 0.35 s of CPU time, not 0.12, and saves 8% of it.
  return ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(use_compression=False))


def _load(path: Path, abstract: Any, within: str = '') -> Any:
  """The arrays of `abstract`, which the checkpoint holds under `within`, on their shardings."""
  import orbax.checkpoint as ocp

  path = path.absolute()
  wanted = {within + name: leaf for name, leaf in tree.paths(abstract)}
  here = SingleDeviceSharding(jax.devices()[0])
  arguments = {
    name: ocp.ArrayRestoreArgs(sharding=leaf.sharding or here, dtype=leaf.dtype)
    for name, leaf in wanted.items()
  }
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    metadata = checkpointer.metadata(path / _STATE).item_metadata
    saved = {name: leaf for name, leaf in metadata.tree.items() if name.startswith(within)}
    _check_same(path, saved, wanted)
    arrays = checkpointer.restore(
      path / _STATE,
      args=ocp.args.PyTreeRestore(item=wanted, restore_args=arguments, partial_restore=True),
    )
  return tree.map_with_path(lambda name, _: _own(arrays[within + name]), abstract)


def _check_same(path: Path, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
  """CheckpointError about the first array that was not saved as the model now has it."""
  for name in dict.fromkeys((*wanted, *saved)):
    if name not in saved:
      differs = f'without {name}, which the model has'
    elif name not in wanted:
      differs = f'with {name}, which the model does not have'
    elif tuple(saved[name].shape) != tuple(wanted[name].shape):
      shape, now = tuple(saved[name].shape), tuple(wanted[name].shape)
      differs = f'with {name} of shape {shape}, the model has {now}'
    elif saved[name].dtype != wanted[name].dtype:
      differs = f'with {name} in {saved[name].dtype}, the model has {wanted[name].dtype}'
    else:
      continue
    raise CheckpointError(
      f'step {path.name} in {path.parent} was saved {differs}: pass the settings it was saved with'
    )


def _own(array: jax.Array) -> jax.Array:
  """A copy whose buffer is XLA's: on CPU an array may share the reader's, and is unfit to donate."""
  return array.copy() if next(iter(array.devices())).platform == 'cpu' else array


def _checkpoints(folder: Path) -> list[Path]:
  """Folders of checkpoints, good and bad, oldest first."""
  found = folder.iterdir() if folder.is_dir() else ()
  return sorted((path for path in found if path.name.isdigit()), key=lambda path: int(path.name))


def _checksums(path: Path) -> dict[str, str]:
  """SHA-256 of each file below `path`, by its name relative to it."""
  files = sorted(file for file in path.rglob('*') if file.is_file())
  return {file.relative_to(path).as_posix(): _hash(file) for file in files}


def _hash(file: Path) -> str:
  with file.open('rb') as opened:
    return hashlib.file_digest(opened, 'sha256').hexdigest()


def _read_checksums(path: Path) -> dict[str, str] | None:
  try:
    return json.loads((path / _CHECKSUMS).read_bytes())
  except (OSError, ValueError):
    return None


def _is_complete(path: Path) -> bool:
  return _read_checksums(path) is not None


def _find_flaw(path: Path) -> str | None:
  """Why the checkpoint cannot be trusted, or None."""
  if not path.is_dir():
    return 'there is none'
  checksums = _read_checksums(path)
  if checksums is None:
    return f'its save was not completed (no whole {_CHECKSUMS})'
  for name, expected in checksums.items():
    try:
      if _hash(path / name) != expected:
        return f'{name} does not match its checksum'
    except OSError as error:
      return f'{name} cannot be read ({error.strerror})'
  return None


def _clear_drafts(folder: Path) -> None:
  """Deals with what a killed or failed save left: a complete draft is published, another deleted."""
  for draft in [path for path in folder.glob('*.tmp') if path.stem.isdigit()]:
    if _is_complete(draft):
      _publish(draft)
    else:
      logging.warning('deleting %s: its save was not completed', draft)
      shutil.rmtree(draft, ignore_errors=True)


def _publish(draft: Path) -> None:
  """Gives a complete draft its name, in place of one that has it."""
  final = draft.with_suffix('')
  if final.exists():
    _delete(final)
  _sync(draft)
  draft.rename(final)
  _sync(final.parent)


def _delete(path: Path) -> None:
  """Deletes a checkpoint; its checksums go first, so that half of one never counts as complete."""
  (path / _CHECKSUMS).unlink(missing_ok=True)
  shutil.rmtree(path, ignore_errors=True)  # what a reader holds open goes at the next pruning


def _write(path: Path, content: str | bytes) -> None:
  path.write_bytes(content.encode() if isinstance(content, str) else content)
  _sync(path)


def _sync(path: Path) -> None:
  """Returns when the file or folder is on the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
