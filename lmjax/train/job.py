"""One start of a training run: everything that `Pretrain` opens, and how it is wired together."""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import jax
import numpy as np

from lmjax.checkpoint.store import CheckpointError, Restored, Store
from lmjax.core import tree
from lmjax.core.clock import Ledger, Pace, duration_text, peak_flops, process_start
from lmjax.core.metrics import Metrics
from lmjax.core.task import device
from lmjax.core.types import Batch
from lmjax.data.loader import Loader
from lmjax.data.mixture import Mixture
from lmjax.data.prepare import prepare_all
from lmjax.data.shards import Shards
from lmjax.data.split import Part
from lmjax.parallel.sharding import check_mesh
from lmjax.train.evaluate import Evaluator
from lmjax.train.guard import Guard
from lmjax.train.loop import Loop
from lmjax.train.profile import Profile, step_range
from lmjax.train.state import (
  TrainState,
  abstract_state,
  batch_sharding,
  make_state,
)
from lmjax.train.step import make_step

if TYPE_CHECKING:
  from lmjax.train.pretrain import Pretrain

# What the header's estimate assumes of the peak before anything is measured.
_EXPECTED_MFU = 0.4


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
    self.ledger = Ledger(workdir / 'ledger.json')
    self.mesh = task.mesh.build()
    self.shards, self.loader = self._open_data()
    self.tokenizer = self.shards[0].tokenizer
    self.model = task.model.with_vocab(self.tokenizer.vocab)
    check_mesh(task.mesh.sizes, self.model, task.batch // task.accumulate, task.accumulate)
    self.tx = task.optimizer.build(self.model.dims(), task.steps)
    self.store = self._open_store()
    self.profile = Profile(step_range(task.profile_steps), workdir / 'profile', self.ledger)
    self.first_loss = _FirstLoss()
    self.writers = task.writers.build(workdir, task.last_step, self.first_loss)
    self.evaluator = Evaluator(
      self.model, self.tokenizer, self.mesh, batch=task.batch, length=task.length
    )

  def _open_data(self) -> tuple[list[Shards], Loader]:
    task = self.task
    mixture = Mixture.load(task.mixture) if task.mixture else None
    sources = [source.posts for source in mixture.sources] if mixture else [task.source]
    shards = prepare_all(sources, task.split, task.text, progress=_show_progress())
    rows = {'batch': task.batch, 'length': task.length, 'method': task.packing}
    return shards, Loader(shards, **rows, seed=task.seed, mixture=mixture)

  def _open_store(self) -> Store:
    keep = self.task.checkpoint
    files = {
      'config.json': (self.workdir / 'config.json').read_bytes(),
      'tokenizer.json': (self.shards[0].folder / 'tokenizer.json').read_bytes(),
    }
    return Store(
      self.workdir / 'checkpoints',
      keep_latest=keep.keep_latest,
      keep_every=keep.keep_every,
      files=files,
    )

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_: object) -> None:
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
    self.tokenizer.save(self.workdir / 'tokenizer.json')
    if restored is not None:
      return self._resume(restored)
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
    state = restored.state if self.model.layout == 'scan' else tree.unstack(restored.state)
    return state, restored.step

  def save(self, step: int, state: TrainState) -> None:
    extra = {
      'data': self._data(),
      'seconds': self.ledger.seconds(),
      'first_loss_seconds': self.first_loss.seconds,
    }
    self.store.save(step, tree.stack(state), extra)

  def batches(self, first: int, last: int) -> Iterator[Batch]:
    """Batches first .. last - 1, each on its devices."""
    rows = self.loader.iterate(first, last)
    with contextlib.closing(rows):  # type: ignore[type-var]
      yield from map(self._place, rows)

  def _place(self, batch: Batch) -> Batch:
    return jax.device_put(batch, batch_sharding(self.mesh))

  def compile_step(self, state: TrainState) -> Callable:
    """The one jit of the task: state donated, outputs laid out like the inputs."""
    step = make_step(self.task.objective, self.model, self.tx, self.task.accumulate)
    layout = jax.tree.map(lambda x: x.sharding, state)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(layout, None))
    with self.ledger.measure('compile'):
      return jitted.lower(state, self._place(self.loader.batch(0))).compile()

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

  def header(self, first: int) -> str:
    """What is about to run, on what, and how long it may take."""
    task, size = self.task, tree.count(jax.eval_shape(self.model.init, jax.random.key(0)))
    tokens = task.batch * task.length * task.steps
    flops = self.flops_per_token * tokens
    peak, source = peak_flops(self.model.dtype)
    left = (task.last_step - first) / task.steps
    seconds = flops * left / (peak * _EXPECTED_MFU)
    rows = self.shards[0].manifest['rows'] if len(self.shards) == 1 else None
    lines = [
      f'device      {device()}, mesh {task.mesh}; peak {peak / 1e9:,.0f} GFLOP/s ({source})',
      f'posts       {_rows_text(rows)}' if rows else f'posts       {len(self.shards)} sources',
      f'model       {size:,} parameters, vocabulary {self.model.vocab:,}',
      f'run         {task.steps:,} steps x {task.batch} rows x {task.length} = {tokens:,} tokens, '
      f'{flops:.2e} FLOPs',
      f'estimated   {duration_text(seconds)} of training at {_EXPECTED_MFU:.0%} of the peak',
      f'workdir     {self.workdir}',
    ]
    if first:
      lines.append(f'resuming    at step {first:,} of {task.last_step:,}')
    return '\n'.join([*lines, *(note for shards in self.shards for note in shards.notes), ''])


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


def _rows_text(rows: dict[str, Any]) -> str:
  dropped = ', '.join(f'{count:,} {reason}' for reason, count in rows['dropped'].items())
  return f'{rows["in"]:,} rows = {rows["used"]:,} to train on + {rows["held_out"]:,} held out' + (
    f' + dropped: {dropped}' if dropped else ''
  )


def _show_progress() -> Callable[[str, int, int], None]:
  """Says what preparation is doing, each thing once."""
  said: set[str] = set()

  def show(what: str, done: int, total: int) -> None:
    del done
    if what not in said:
      said.add(what)
      print(f'{what}{f" ({total:,})" if total else ""} ...', flush=True)

  return show
