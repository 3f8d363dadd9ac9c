"""One start of a training run: everything that it opens, and how it is wired together."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Self

import jax
from jax.sharding import NamedSharding, PartitionSpec

from lmjax.checkpoint.store import CheckpointError, Restored, Store
from lmjax.core import storage, tree
from lmjax.core.clock import Ledger, Pace, peak_flops, process_start
from lmjax.core.compilation import compile_lowered
from lmjax.core.errors import UserError
from lmjax.core.metrics import Metrics, Tee
from lmjax.parallel import hosts
from lmjax.parallel.accelerator import preset
from lmjax.parallel.mesh import Mesh
from lmjax.parallel.sharding import check_mesh
from lmjax.train.audit import Audit
from lmjax.train.feed import Agreement, Feed
from lmjax.train.guard import Guard
from lmjax.train.loop import Loop
from lmjax.train.profile import Profile, step_range
from lmjax.train.state import TrainState, abstract_state, with_moments_in
from lmjax.train.step import join_frozen, make_step, split_frozen

if TYPE_CHECKING:
  from lmjax.train.training import Training


class Job:
  """The open parts of a run: work (data and model), mesh, optimizer, store, ledger, writers.

  Attributes:
    task: the configuration.
    work: what is trained, on what, for what.
    model: the work's.
  """

  def __init__(self, task: 'Training', workdir: Path, guard: Guard) -> None:
    self.task, self.workdir, self.guard = task, workdir, guard
    self._closed = False
    self.ledger = Ledger(workdir / 'ledger.json' if hosts.is_leader() else None)
    self.mesh = _build_mesh(task.mesh)
    self.preset = preset(jax.devices()[0].device_kind)
    self.work = task.open(self.mesh, self.preset)
    self.model = self.work.model
    self.audit = Audit(workdir if task.audit else None)
    self.feed = Feed(self.work.source, self.mesh, self.audit)
    rows, length = task.batch // task.accumulate, self.work.source.length or 1
    check_mesh(task.mesh.sizes, self.model, rows, length, task.accumulate)
    self.tx = task.optimizer.build(self.work.trained.dims(), task.steps)
    self.store = self._open_store()
    self.first_loss = _FirstLoss()
    self.profile, self.writers = self._open_outputs()

  def _open_store(self) -> Store:
    keep = self.task.checkpoint
    files = hosts.is_leader() and {
      'config.json': (self.workdir / 'config.json').read_bytes(),
      **self.work.files,
    }
    return Store(
      storage.origin(self.workdir) / 'checkpoints',
      keep_latest=keep.keep_latest,
      keep_every=keep.keep_every,
      files=files or {},
    )

  def _open_outputs(self) -> tuple[Profile, Tee]:
    task, folder = self.task, self.workdir / 'profile'
    if not hosts.is_leader():
      return Profile(None, folder, self.ledger), Tee(self.first_loss)
    writers = task.writers.build(self.workdir, task.last_step, self.first_loss)
    return Profile(step_range(task.profile_steps), folder, self.ledger), writers

  def __enter__(self) -> Self:
    return self

  def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
    if kind in (None, SystemExit) or hosts.count() == 1:  # else others may never come to a save
      self.close()

  def close(self) -> None:
    """Waits for the last save, closes what training writes to and saves the ledger, also again."""
    if not self._closed:
      self._closed = True
      self.profile.close()
      with self.ledger.measure('checkpoint'):
        self.store.close()
      self.writers.close()
    self.ledger.save()

  def start(self) -> tuple[TrainState, int]:
    """The newest saved state on this mesh, or a fresh one, and the steps it has behind it."""
    restored = self._restore()
    state, step = self._begin() if restored is None else self._resume(restored)
    return with_moments_in(self.task.optimizer.memory, state), step

  def _begin(self) -> tuple[TrainState, int]:
    self.ledger.rewind(0, {})
    self.writers.rewind(0)
    with self.ledger.measure('compile'):
      state = self.work.begin(self.tx, self.task.seed, self.mesh)
    with self.ledger.measure('evaluation'):
      self.work.begun(state, self.workdir)
    return state, 0

  def _restore(self) -> Restored | None:
    with self.ledger.measure('checkpoint'):
      abstract = abstract_state(self.work.trained, self.tx, self.mesh)
      restored = self.store.restore(tree.stack(abstract))
    if restored is not None and restored.extra['data'] != self.work.data:
      raise CheckpointError(
        f'the posts have changed since {self.workdir} was begun: '
        'put them back to continue it, or pass another --workdir'
      )
    if hosts.is_leader():
      for name, content in self.work.files.items():
        (self.workdir / name).write_bytes(content)
    return restored

  def _resume(self, restored: Restored) -> tuple[TrainState, int]:
    self.first_loss.seconds = restored.extra['first_loss_seconds']
    self.ledger.rewind(restored.step, restored.extra['seconds'])
    self.writers.rewind(restored.step)
    self.audit.params('restored', restored.step, restored.state.params)
    state = restored.state if self.model.layout == 'scan' else tree.unstack(restored.state)
    return dataclasses.replace(state, frozen=self.work.frozen), restored.step

  def save(self, step: int, state: TrainState) -> None:
    if hosts.is_leader():  # first, so that a checkpoint never knows of steps that the files do not
      storage.sync(self.workdir)
    extra = {
      'data': self.work.data,
      'seconds': self.ledger.seconds(),
      'first_loss_seconds': self.first_loss.seconds,
    }
    self.audit.params('saved', step, state.params)
    self.store.save(step, tree.stack(dataclasses.replace(state, frozen=None)), extra)

  def compile_step(self, state: TrainState) -> Callable:
    """The one jit of the task: state donated but what is frozen, outputs laid out like the inputs."""
    work = self.work
    step = make_step(work.objective, self.model, self.tx, self.task.accumulate, work.assemble)
    agreement = Agreement(self.mesh, lambda: self.guard.stop_requested)
    thawed = dataclasses.replace(state, frozen=None)
    everywhere = NamedSharding(self.mesh, PartitionSpec())
    layouts = (jax.tree.map(lambda x: x.sharding, thawed), everywhere)
    jitted = jax.jit(split_frozen(agreement.within(step)), donate_argnums=0, out_shardings=layouts)
    with self.ledger.measure('compile'):
      batch = work.abstract(self.feed.abstract())
      lowered = jitted.lower(thawed, state.frozen, batch, *agreement.flags())
      compiled = compile_lowered(lowered, self.preset.compiler_options)
    return join_frozen(lambda *given: compiled(*given, *agreement.flags()), work.complete)

  def audit_next(self, train_step: Callable, state: TrainState, step: int) -> None:
    """Takes the step after a stop as well, for an audit alone; `state` is given up to it."""
    if self.task.audit and self.guard.stops and step < self.task.steps:
      (batch,) = self.feed.batches(step, step + 1)
      self.audit.next(step + 1, train_step(state, batch)[1])

  def loop(self, train_step: Callable, first: int) -> Loop:
    """The loop on from step `first`, which saves, evaluates and stops as the task says."""
    self.guard.defer()
    clock = lambda: self.ledger.spent('compute', 'data')
    peak = peak_flops(self.model.dtype)[0] / self.work.flops_per_token
    return Loop(
      train_step=self.profile.wrap(train_step, first),
      evaluate=self.work.evaluate,
      save=self.save,
      evaluate_every=self.task.evaluate_every,
      save_every=self.task.checkpoint.every_steps,
      ledger=self.ledger,
      pace=Pace(self.task.last_step, peak_tokens_per_second=peak, clock=clock),
      writers=self.writers,
      guard=self.guard,
    )


def _build_mesh(mesh: Mesh) -> jax.sharding.Mesh:
  """The mesh; UserError where several processes have more devices than it is of."""
  devices = jax.device_count()
  if hosts.count() > 1 and mesh.devices != devices:
    raise UserError(
      f'mesh {mesh} is of {mesh.devices} devices and the {hosts.count()} processes of this run have '
      f'{devices}: pass mesh sizes whose product is {devices}, such as --mesh.data={devices}'
    )
  return mesh.build()


class _FirstLoss:
  """A writer that notes how long after the start of the process the first loss was there."""

  def __init__(self) -> None:
    self.seconds: float | None = None

  def write(self, step: int, metrics: Metrics) -> None:
    del step, metrics
    if self.seconds is None:
      self.seconds = time.monotonic() - process_start()

  def rewind(self, step: int) -> None:
    """A run has one first loss, whatever is trained again."""

  def close(self) -> None:
    """Nothing is open."""
