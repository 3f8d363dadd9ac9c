"""Checkpoints of a run: saved in the background, verified when read, restored onto any mesh.

    1200/state/           every array of the state by its path, as orbax writes them
    1200/config.json ...  the files that belong to the run
    1200/extra.json       what the caller saved beside the state
    1200/checksums.json   SHA-256 of each file above; written last, so without it a save is unfinished
    1600.tmp/             a save under way, renamed to 1600 when it is complete; on s3:// and gs://
                          it is written as 1600, and counts once it has its checksums.json

All processes of a run call a store alike and in the same order, and see the same folder. Each writes
and hashes its own shards (`state/ocdbt.process_N`; what several hold alike they share out), process 0
does the rest. They agree by way of `hosts.share`, never by a collective on devices, which would wait
for the step under way; so a save that fails on one fails on all, and every wait has a deadline.

The one file that knows orbax. Knows nothing about models, optimizers or how layers are laid out: a
state is a pytree of arrays, and its paths are the names in the checkpoint.
"""

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
from absl import logging
from jax.sharding import SingleDeviceSharding

from lmjax.checkpoint import folders, objects
from lmjax.core import tree
from lmjax.core.config import Config, leaf
from lmjax.core.errors import UserError
from lmjax.core.storage import is_remote
from lmjax.core.types import Params
from lmjax.parallel import hosts

if TYPE_CHECKING:
  import orbax.checkpoint as ocp

_STATE, _EXTRA = 'state', 'extra.json'
_ARRAYS = 'array_metadatas'  # orbax has the others poll until process 0 makes it
# Hosts differ in how long their part takes; one that died is noticed long before (see rollcall).
_SECONDS = 3600.0
_SHARED = 'put --workdir on storage that all processes share'
_SEEN_SECONDS = 20.0  # until a network file system shows every process what process 0 made


class CheckpointError(UserError):
  """A checkpoint that cannot be restored or saved as asked, and what to do."""


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
    files: name -> content of the files to put in every checkpoint; process 0's are.
  """

  def __init__(
    self,
    folder: Path,
    *,
    keep_latest: int,
    keep_every: int | None,
    files: Mapping[str, str | bytes],
  ) -> None:
    self._folder = folder if is_remote(folder) else folder.absolute()
    self._keep_latest = keep_latest
    self._keep_every = keep_every
    self._files = files
    self._passed_over: set[int] = set()
    self._pending: Future[None] | None = None
    self._worker = ThreadPoolExecutor(1, thread_name_prefix='checkpoint')
    # Importing orbax takes 0.4 s, here beside the compilation of the first step.
    self._handler = self._worker.submit(_open_handler)
    if hosts.is_leader():
      folders.clear_drafts(self._folder)

  def __enter__(self) -> 'Store':
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def save(self, step: int, state: Any, extra: dict[str, Any]) -> None:
    """Begins to save; returns when `state` may be donated. An earlier save is waited for first.

    Args:
      step: names the checkpoint; one of the same step is replaced.
      state: a pytree of arrays.
      extra: JSON values to save beside it; process 0's are.
    """
    self.wait()
    beside = {**self._files, _EXTRA: json.dumps(extra)}
    draft = folders.draft_of(self._folder, step)
    with _together('checkpoint begin', step):
      if hosts.is_leader():
        folders.make_draft(draft, f'{_STATE}/{_ARRAYS}')
    arrays = dict(tree.paths(state))
    writing = self._worker.submit(self._write, draft, arrays)
    writing.exception()  # waits: `state` has been copied
    self._pending = self._worker.submit(self._commit, step, draft, writing, beside)

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
      self._handler.result().close()

  def steps(self) -> list[int]:
    """Steps of the complete checkpoints, oldest first, without those found corrupted."""
    found = folders.checkpoints(self._folder)
    complete = [int(path.name) for path in found if folders.is_complete(path)]
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
    self._passed_over = set()
    for path in reversed(self._list()):
      flaw = _find_flaw(path)
      if flaw is None:
        return path
      if hosts.is_leader():
        _warn(path, flaw)
      self._passed_over.add(int(path.name))
    return None

  def _list(self) -> list[Path]:
    """Folders of checkpoints, oldest first, which all processes see."""
    found = folders.checkpoints(self._folder)
    seen = hosts.share('checkpoint names', json.dumps([path.name for path in found]))
    others = [process for process, names in enumerate(seen) if names != seen[0]]
    if others:
      raise UserError(
        f'process {others[0]} does not see the checkpoints in {self._folder} that process 0 sees: '
        f'{_SHARED}'
      )
    return found

  def _find_step(self, step: int) -> Path:
    self._list()
    path = self._folder / str(step)
    flaw = _find_flaw(path)
    if flaw is not None:
      self._passed_over.add(step)
      others = ', '.join(map(str, self.steps())) or 'none'
      raise CheckpointError(
        f'step {step} in {self._folder} cannot be restored, {flaw}: steps to choose from are {others}'
      )
    return path

  def _write(self, draft: Path, arrays: dict[str, jax.Array]) -> list[Any]:
    """What to wait for until this process has written its shards of `arrays`."""
    import asyncio

    import orbax.checkpoint as ocp
    from etils import epath

    _check_seen(draft)
    saving = self._handler.result().async_save(
      epath.Path(draft / _STATE), args=ocp.args.PyTreeSave(arrays)
    )
    return asyncio.run(saving) or []

  def _commit(
    self, step: int, draft: Path, writing: Future[list[Any]], beside: Mapping[str, str | bytes]
  ) -> None:
    deadline = time.monotonic() + _SECONDS
    with _together('checkpoint written', step):
      for future in writing.result():
        future.result(timeout=max(0.0, deadline - time.monotonic()))
      folders.hash_own(draft, hosts.index())
    self._passed_over.discard(step)
    with _together('checkpoint complete', step):
      if hosts.is_leader():
        self._complete(step, draft, beside)

  def _complete(self, step: int, draft: Path, beside: Mapping[str, str | bytes]) -> None:
    """What process 0 does once all have written their shards."""
    from etils import epath

    self._handler.result().finalize(epath.Path(draft / _STATE))
    for name, content in beside.items():
      folders.write(draft / name, content)
    folders.complete(draft, hosts.count())
    folders.publish(draft)
    self._prune(step)

  def _prune(self, newest: int) -> None:
    """Deletes all but the checkpoints to keep, of which `newest`, just completed, is one."""
    good = self.steps()
    kept = {newest, *good[-self._keep_latest :]}
    if self._keep_every is not None:
      kept.update(step for step in good if step % self._keep_every == 0)
    for path in folders.checkpoints(self._folder):
      if int(path.name) not in kept:
        folders.delete(path)


def find_checkpoint(folder: Path) -> Path | None:
  """The newest checkpoint below `folder` whose every file is as it was written; writes nothing."""
  for path in reversed(folders.checkpoints(folder)):
    flaw = folders.find_flaw(path)
    if flaw is None:
      return path
    _warn(path, flaw)
  return None


def restore_params(path: Path, abstract_params: Params) -> Params:
  """The parameters alone of one checkpoint, such as `find_checkpoint` returns.

  Args:
    path: the folder of the checkpoint; its files are taken as they are.
    abstract_params: nested dict of `jax.ShapeDtypeStruct`; one without a sharding goes to the
      first device of this process.
  """
  return _load(path, abstract_params, within='params/')


@contextlib.contextmanager
def _together(name: str, step: int) -> Iterator[None]:
  """A part of the save of `step` that fails on every process where it fails on one."""
  error = None
  try:
    yield
  except Exception as caught:
    error = caught
  said = hosts.share(name, f'{type(error).__name__}: {error}' if error else '', _SECONDS)
  if error is not None:
    raise error
  failed = [f'process {process}: {text}' for process, text in enumerate(said) if text]
  if failed:
    raise CheckpointError(f'step {step} was not saved because of {"; ".join(failed[:3])}')


def _check_seen(draft: Path) -> None:
  """UserError where this process does not see what process 0 has made."""
  deadline = time.monotonic() + _SEEN_SECONDS
  while not (is_remote(draft) or draft.is_dir()):
    if time.monotonic() > deadline:
      raise UserError(
        f'process {hosts.index()} does not see {draft}, which process 0 has made: {_SHARED}'
      )
    time.sleep(0.05)


def _find_flaw(path: Path) -> str | None:
  """Why the checkpoint cannot be trusted, or None; every process reads its part, and hears of all."""
  flaw = folders.find_flaw(path, hosts.index(), hosts.count())
  said = hosts.share('checkpoint whole', flaw or '', _SECONDS)
  return next(filter(None, said), None)


def _warn(path: Path, flaw: str) -> None:
  logging.warning('passing over checkpoint %s: %s', path, flaw)


def _open_handler() -> 'ocp.PyTreeCheckpointHandler':
  import orbax.checkpoint as ocp

  objects.teach_s3()

  # Compressing 120 MB of f32 noise takes 0.35 s of CPU time, not 0.12, and saves 8% of it.
  return ocp.PyTreeCheckpointHandler(use_compression=False)


def _load(path: Path, abstract: Any, within: str = '') -> Any:
  """The arrays of `abstract`, which the checkpoint holds under `within`, on their shardings."""
  import orbax.checkpoint as ocp
  from etils import epath

  folder = epath.Path((path if is_remote(path) else path.absolute()) / _STATE)
  wanted = {within + name: leaf for name, leaf in tree.paths(abstract)}
  here = SingleDeviceSharding(jax.local_devices()[0])
  arguments = {
    name: ocp.ArrayRestoreArgs(sharding=leaf.sharding or here, dtype=leaf.dtype)
    for name, leaf in wanted.items()
  }
  # Without a Checkpointer, whose barriers are collectives: every process reads for itself.
  with contextlib.closing(_open_handler()) as handler:
    metadata = handler.metadata(folder).tree
    saved = {name: leaf for name, leaf in metadata.items() if name.startswith(within)}
    _check_same(path, saved, wanted)
    arrays = handler.restore(
      folder,
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
