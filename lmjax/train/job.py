"""One start of a training run: everything that `Pretrain` opens, and how it is wired together."""

import dataclasses
import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Self

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lmjax.checkpoint.store import CheckpointError, Restored, Store
from lmjax.core import storage, tree
from lmjax.core.clock import Ledger, Pace, peak_flops, process_start
from lmjax.core.errors import UserError
from lmjax.core.metrics import Metrics, Tee
from lmjax.data.loader import Loader
from lmjax.data.mixture import Mixture
from lmjax.data.prepare import prepare_all
from lmjax.data.shards import Shards
from lmjax.data.split import Part
from lmjax.models.transformer import Decoder
from lmjax.parallel import hosts
from lmjax.parallel.accelerator import preset
from lmjax.parallel.mesh import Mesh
from lmjax.parallel.sharding import check_mesh
from lmjax.train.audit import Audit
from lmjax.train.evaluate import Evaluator
from lmjax.train.feed import Agreement, Feed
from lmjax.train.guard import Guard
from lmjax.train.loop import Loop
from lmjax.train.profile import Profile, step_range
from lmjax.train.state import (
  TrainState,
  abstract_state,
  batch_sharding,
  make_state,
  with_moments_in,
)
from lmjax.train.step import make_step

if TYPE_CHECKING:
  from lmjax.train.pretrain import Pretrain

_PREPARE_SECONDS = 86400.0  # in which the slowest process has its posts ready


class Job:
  """The open parts of a run: data, model, mesh, optimizer, store, ledger, writers.

  Attributes:
    task: the configuration.
    model: `task.model` with the tokenizer's vocabulary.
    shards: the prepared posts, one for each source.
  """

  def __init__(self, task: 'Pretrain', workdir: Path, guard: Guard) -> None:
    self.task, self.workdir, self.guard = task, workdir, guard
    self._closed = False
    self.ledger = Ledger(workdir / 'ledger.json' if hosts.is_leader() else None)
    self.mesh = _build_mesh(task.mesh)
    self.shards, loader = open_data(task)
    self.audit = Audit(workdir if task.audit else None)
    self.feed = Feed(loader, batch_sharding(self.mesh), self.audit)
    self.tokenizer = self.shards[0].tokenizer
    self.preset = preset(jax.devices()[0].device_kind)
    self.model = self._suited_model()
    rows = task.batch // task.accumulate
    check_mesh(task.mesh.sizes, self.model, rows, task.length, task.accumulate)
    self.preset.check(self.model.attention, self.model.product_dtype)
    self.tx = task.optimizer.build(self.model.dims(), task.steps)
    self.store = self._open_store()
    self.first_loss = _FirstLoss()
    self.profile, self.writers = self._open_outputs()
    self.evaluator = Evaluator(
      self.model, self.tokenizer, self.mesh, batch=task.batch, length=task.length
    )

  def _suited_model(self) -> Decoder:
    """The model for the tokenizer, the posts and these devices; refused where it cannot be."""
    dtype = self.preset.compute_dtype(self.task.model.dtype)
    hosts.check_equal(
      'compute dtype', dtype, 'use one kind of machine, or pass --model.dtype=float32'
    )
    model = dataclasses.replace(self.task.model, dtype=dtype)
    longest = lambda: max(int(shards.lengths('held_out').max()) + 1 for shards in self.shards)
    if (
      model.positions is not None and (needed := max(self.task.length, longest())) > model.positions
    ):
      raise UserError(
        f'model.positions={model.positions} are fewer than the {needed} tokens of a row or of the '
        f'longest post that is held out: pass --model.positions={needed} or more'
      )
    return model.with_vocab(self.tokenizer.vocab)

  def _open_store(self) -> Store:
    keep = self.task.checkpoint
    files = hosts.is_leader() and {
      'config.json': (self.workdir / 'config.json').read_bytes(),
      'tokenizer.json': (self.shards[0].folder / 'tokenizer.json').read_bytes(),
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
    if hosts.is_leader():
      self.tokenizer.save(self.workdir / 'tokenizer.json')
    state, step = self._begin() if restored is None else self._resume(restored)
    return with_moments_in(self.task.optimizer.memory, state), step

  def _begin(self) -> tuple[TrainState, int]:
    self.ledger.rewind(0, {})
    self.writers.rewind(0)
    with self.ledger.measure('compile'):
      return make_state(self.model, self.tx, self.task.seed, self.mesh), 0

  def _restore(self) -> Restored | None:
    with self.ledger.measure('checkpoint'):
      restored = self.store.restore(tree.stack(abstract_state(self.model, self.tx, self.mesh)))
    if restored is not None and restored.extra['data'] != self._data():
      raise CheckpointError(
        f'the posts have changed since {self.workdir} was begun: '
        'put them back to continue it, or pass another --workdir'
      )
    return restored

  def _resume(self, restored: Restored) -> tuple[TrainState, int]:
    self.first_loss.seconds = restored.extra['first_loss_seconds']
    self.ledger.rewind(restored.step, restored.extra['seconds'])
    self.writers.rewind(restored.step)
    self.audit.params('restored', restored.step, restored.state.params)
    state = restored.state if self.model.layout == 'scan' else tree.unstack(restored.state)
    return state, restored.step

  def save(self, step: int, state: TrainState) -> None:
    if hosts.is_leader():  # first, so that a checkpoint never knows of steps that the files do not
      storage.sync(self.workdir)
    extra = {
      'data': self._data(),
      'seconds': self.ledger.seconds(),
      'first_loss_seconds': self.first_loss.seconds,
    }
    self.audit.params('saved', step, state.params)
    self.store.save(step, tree.stack(state), extra)

  def compile_step(self, state: TrainState) -> Callable:
    """The one jit of the task: state donated, outputs laid out like the inputs."""
    step = make_step(self.task.objective, self.model, self.tx, self.task.accumulate)
    agreement = Agreement(self.mesh, lambda: self.guard.stop_requested)
    layouts = (jax.tree.map(lambda x: x.sharding, state), NamedSharding(self.mesh, PartitionSpec()))
    jitted = jax.jit(agreement.within(step), donate_argnums=0, out_shardings=layouts)
    with self.ledger.measure('compile'):
      lowered = jitted.lower(state, self.feed.abstract(), *agreement.flags())
      compiled = lowered.compile(compiler_options=self.preset.compiler_options)
    return lambda state, batch: compiled(state, batch, *agreement.flags())

  def loop(self, train_step: Callable, first: int) -> Loop:
    """The loop on from step `first`, which saves, evaluates and stops as the task says."""
    self.guard.defer()
    clock = lambda: self.ledger.spent('compute', 'data')
    peak = peak_flops(self.model.dtype)[0] / self.flops_per_token
    return Loop(
      train_step=self.profile.wrap(train_step, first),
      evaluate=self._evaluate,
      save=self.save,
      evaluate_every=self.task.evaluate_every,
      save_every=self.task.checkpoint.every_steps,
      ledger=self.ledger,
      pace=Pace(self.task.last_step, peak_tokens_per_second=peak, clock=clock),
      writers=self.writers,
      guard=self.guard,
    )

  @property
  def flops_per_token(self) -> float:
    return self.model.flops_per_token(self.task.length)

  def posts(self, part: Part) -> Iterator[np.ndarray]:
    """Token ids of the posts of a part, one of each source in turn."""
    each = [shards.stream(part) for shards in self.shards]
    return (post for group in itertools.zip_longest(*each) for post in group if post is not None)

  def held_out(self) -> Iterator[np.ndarray]:
    return self.posts('held_out')

  def _evaluate(self, state: TrainState) -> dict[str, float]:
    posts = list(itertools.islice(self.held_out(), self.task.evaluate_posts))
    return {'held_out/bits_per_byte': self.evaluator.bits_per_byte(state.params, posts)}

  def _data(self) -> list[str]:
    return [shards.sha256 for shards in self.shards]


def open_data(task: 'Pretrain') -> tuple[list[Shards], Loader]:
  """The prepared posts of a task, one for each source, and its batches."""
  mixture = Mixture.load(task.mixture) if task.mixture else None
  sources = [source.posts for source in mixture.sources] if mixture else [task.source]
  shards = prepare_all(sources, task.split, task.text, progress=_show_progress())
  data = json.dumps([one.sha256 for one in shards])
  hosts.check_equal(
    'the prepared posts',
    data,
    'give every host the same files, or one LMJAX_CACHE that all see',
    _PREPARE_SECONDS,
  )
  rows = {'batch': task.batch, 'length': task.length, 'method': task.packing}
  return shards, Loader(shards, **rows, seed=task.seed, mixture=mixture)


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


def _show_progress() -> Callable[[str, int, int], None]:
  """Says what preparation is doing, each thing once."""
  said: set[str] = set()

  def show(what: str, done: int, total: int) -> None:
    del done
    if what not in said:
      said.add(what)
      hosts.say(f'{what}{f" ({total:,})" if total else ""} ...')

  return show
