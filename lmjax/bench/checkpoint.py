"""`bench_checkpoint`: how long a save holds up the loop, and how fast a restore is beside the disk.

The state is that of a decoder under AdamW: parameters and two moments. A restore reads every byte
twice, once to verify its SHA-256; before each measurement what was read is dropped from the page cache.
"""

import os
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from lmjax.bench import contest
from lmjax.bench.side import Turn
from lmjax.bench.train import SHAPES, work_of
from lmjax.checkpoint.store import Store
from lmjax.core import processor, tree
from lmjax.core.config import leaf
from lmjax.core.task import Report, Task

_LENGTH = 256
_BUFFER = 8 << 20


class BenchCheckpoint(Task):
  """Times saving and restoring the state of a decoder of 110M parameters: 1.3 GB."""

  rounds: int = leaf(3, 'Turns; the medians are reported.', low=1)
  tokens: int = leaf(1024, 'Tokens of the step that a save holds up, a multiple of 256.', low=256)

  def run(self, workdir: Path) -> Report:
    settings = {**SHAPES['110m'], 'length': _LENGTH, 'rows': self.tokens // _LENGTH}
    settings |= {'dtype': 'float32', 'folder': str(workdir / 'checkpoints')}
    side = contest.ours('lmjax', f'{__name__}:turn_of', settings)
    found = contest.compete([side], self.rounds, workdir / 'stderr.log')
    names = list(found.turns['lmjax'][0].figures)
    figures = {name: found.figure('lmjax', name)._asdict() for name in names}
    ratios = {
      'stall_vs_step': figures['stall_seconds']['median'] / figures['step_seconds']['median'],
      'restore_vs_disk': figures['restore_gb_per_second']['median']
      / figures['disk_gb_per_second']['median'],
    }
    print(f'a save holds the loop up for {ratios["stall_vs_step"]:.2f} of a step')
    print(f'a restore reads at {ratios["restore_vs_disk"]:.2f} of the rate of the disk')
    return {'ratios': ratios, **figures, 'cores': processor.cores()}


def turn_of(settings: dict[str, Any]) -> Turn:
  """Takes a step, saves its state, takes another while that is written, and restores."""
  work = work_of(settings)
  state = work.state
  folder = Path(settings['folder'])
  place = SingleDeviceSharding(jax.devices()[0])
  shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
  abstract = jax.tree.map(shape, jax.eval_shape(tree.stack, state))
  number = 0

  def step() -> float:
    nonlocal state
    start = time.perf_counter()
    state, _ = work.step(state, work.batch)
    jax.block_until_ready(state)
    return time.perf_counter() - start

  def turn() -> dict[str, Any]:
    nonlocal number
    number += 1
    alone = step()
    with Store(folder, keep_latest=1, keep_every=None, files={}) as store:
      start = time.perf_counter()
      store.save(number, tree.stack(state), {})  # as a run saves
      stall = time.perf_counter() - start
      beside = step()
      store.wait()
      saved = time.perf_counter() - start
      size = drop_from_memory(folder / str(number))
      start = time.perf_counter()
      restored = store.restore(abstract)
      jax.block_until_ready(restored and restored.state)
      seconds = time.perf_counter() - start
    return {
      'step_seconds': alone,
      'step_beside_a_save_seconds': beside,
      'stall_seconds': stall,
      'save_seconds': saved,
      'gigabytes': size / 1e9,
      'restore_gb_per_second': size / 1e9 / seconds,
      'disk_gb_per_second': read_rate(folder / str(number)) / 1e9,
    }

  step()
  return turn


def drop_from_memory(folder: Path) -> int:
  """Has the kernel forget the files below `folder`, so that reading them reads the disk; their bytes."""
  size = 0
  for path in _files(folder):
    with path.open('rb') as file:
      os.fsync(file.fileno())
      os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
      size += path.stat().st_size
  return size


def read_rate(folder: Path) -> float:
  """Bytes a second of reading the files below `folder`, one after another, from the disk."""
  size = drop_from_memory(folder)
  buffer = np.empty(_BUFFER, np.uint8).data
  start = time.perf_counter()
  for path in _files(folder):
    with path.open('rb', buffering=0) as file:
      while file.readinto(buffer):
        pass
  return size / (time.perf_counter() - start)


def _files(folder: Path) -> list[Path]:
  return sorted(path for path in folder.rglob('*') if path.is_file())
