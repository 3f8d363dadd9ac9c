"""One run driven over changing numbers of processes and meshes, beside one that never changed.

Each start is real processes on this machine, stopped by SIGTERM and started again in another
layout: batches must be identical to the bit, parameters restored as they were saved, and losses
equal up to the order of f32 sums.
"""

import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lmjax.core import registry
from lmjax.core.config import from_json, leaf
from lmjax.core.errors import UserError
from lmjax.core.task import Report, Task, write_json
from lmjax.data.sources import Posts, Rows
from lmjax.train import audit
from lmjax.train.pretrain import open_data

_TIMEOUT = 1800.0  # seconds for one start
_AGAIN = 10  # steps that a layout takes a second time
_OFTEN = '--checkpoint.every_steps=5'  # while it does; else a start saves when it stops alone
_SAVED = 75


class Layout(NamedTuple):
  """How a start is run: `4:data=2:fsdp=2` is 4 processes over that mesh."""

  processes: int
  mesh: tuple[str, ...]

  @classmethod
  def parse(cls, text: str) -> 'Layout':
    count, _, axes = text.partition(':')
    if not (count.isdigit() and int(count)):
      raise UserError(
        f'layouts={text}: expected PROCESSES:AXIS=SIZE:AXIS=SIZE, such as 4:data=2:fsdp=2'
      )
    return cls(int(count), tuple(axis for axis in axes.split(':') if axis))

  @property
  def flags(self) -> list[str]:
    return [f'--mesh.{axis}' for axis in self.mesh]


class Elastic(Task):
  """Trains through changing layouts and compares every step with a run that never changed."""

  target: str = leaf('posts_tiny', 'What is trained.')
  layouts: tuple[str, ...] = leaf(
    ('1', '4:data=2:fsdp=2', '2:tensor=2', '3:data=3', '1'),
    'Processes and mesh of each start in turn.',
  )
  steps: int = leaf(240, 'Steps of the run, about as many in each layout.', low=5)
  flags: tuple[str, ...] = leaf(
    (
      '--batch=24',
      '--length=64',
      '--model.dtype=float32',
      '--model.width=64',
      '--model.head_dim=16',
      '--model.mlp=192',
      '--vocab=1024',
    ),
    'Further flags of every start.',
  )
  posts: int = leaf(1500, 'Posts of each of the two sources that are mixed.', low=100)

  def run(self, workdir: Path) -> Report:
    """Prints a line for each start; the report has `ok` and the gap of every step."""
    layouts = [Layout.parse(text) for text in self.layouts]
    mixture = self._write_mixture(workdir)
    flags = [f'--experiment={self.target}', f'--mixture={mixture}', *self._flags()]
    start = lambda layout, folder, *more: _Start(layout, folder, [*flags, *more])
    reference, run = workdir / 'reference', workdir / 'run'
    print(f'reference: {self.steps} steps on one process', flush=True)
    start(Layout(1, ()), reference).finish()
    arrows = self._drive(start, layouts, run)
    return self._compare(reference, run, arrows)

  def _flags(self) -> list[str]:
    steps = [
      f'--steps={self.steps}',
      f'--checkpoint.every_steps={self.steps}',
      f'--evaluate_every={self.steps}',
    ]
    unused = ['--baselines=false', '--samples=0', '--writers.tensorboard=false']
    return [*steps, *unused, '--final_posts=100', '--audit=true', *self.flags]

  def _write_mixture(self, workdir: Path) -> Path:
    """Two sources of the default posts, whose weights change twice on the way."""
    texts = itertools.islice((post.text for post in Posts().read(Rows())), 2 * self.posts)
    each: list[list[str]] = [[], []]
    for number, text in enumerate(texts):
      each[number % 2].append(json.dumps({'text': text}))
    paths = [workdir / 'first.jsonl', workdir / 'second.jsonl']
    for path, lines in zip(paths, each, strict=True):
      path.write_text('\n'.join(lines) + '\n', encoding='utf-8')
    third = self.steps // 3
    weights = ([[0, 3], [third, 1], [2 * third, 2]], [[0, 1], [third, 2], [2 * third, 1]])
    sources = [
      {'posts': str(path.absolute()), 'weight': weight}
      for path, weight in zip(paths, weights, strict=True)
    ]
    write_json(workdir / 'mixture.json', sources)
    return workdir / 'mixture.json'

  def _drive(
    self, start: Callable[..., '_Start'], layouts: list[Layout], run: Path
  ) -> list[dict[str, Any]]:
    """Runs every layout in turn; at each arrow the old one also takes a step more, for the audit."""
    arrows: list[dict[str, Any]] = []
    for number, layout in enumerate(layouts):
      goal = self.steps * (number + 1) // len(layouts)
      print(f'{layout.processes} processes, {" ".join(layout.flags) or "no mesh"}', flush=True)
      if number == len(layouts) - 1:
        start(layout, run).finish()
        break
      if number == 1:
        twin = run.with_name('again')
        shutil.copytree(run, twin)
        start(layout, run, _OFTEN).stop_after(goal)
        start(layout, twin, _OFTEN).stop_after(arrows[0]['step'] + _AGAIN)
      else:
        start(layout, run).stop_after(goal)
      step = len(_metrics(run))
      old = audit.read_next(run)[step + 1]
      arrows.append({'step': step, 'processes': layout.processes, 'old': old})
    for arrow in arrows:
      arrow['new'] = _metrics(run)[arrow['step']]
    return arrows

  def _compare(self, reference: Path, run: Path, arrows: list[dict[str, Any]]) -> Report:
    expected, found = audit.read_batches(reference), audit.read_batches(run)
    wanted = range(self.steps)
    same = [expected[step] == found.get(step) for step in wanted]
    losses = [np.array([line['loss'] for line in _metrics(path)]) for path in (reference, run)]
    gaps = np.abs(losses[1] / losses[0] - 1)
    saved, restored = (audit.read_params(run, event) for event in ('saved', 'restored'))
    for arrow in arrows:
      old, new, step = arrow.pop('old'), arrow.pop('new'), arrow['step']
      arrow['parameters_equal'] = len(saved[step] | restored[step]) == 1
      arrow['loss_gap'] = abs(new['loss'] / old['loss'] - 1)
      arrow['gradient_norm_gap'] = abs(new['gradient_norm'] / old['gradient_norm'] - 1)
    twin = run.with_name('again')
    again = audit.read_params(twin, 'saved')
    common = sorted(step for step in set(again) & set(saved) if step > arrows[0]['step'])
    epochs = self._count_epochs(run)
    report = {
      'steps': len(losses[1]),
      'epochs_exact': epochs >= 1,
      'epochs': epochs,
      'batches_equal': sum(same),
      'arrows': arrows,
      'same_layout_twice_equal': bool(common) and all(again[s] == saved[s] for s in common),
      'final_loss_gap': float(gaps[-1]),
      'largest_gap': float(gaps.max()),
      'gaps': gaps.tolist(),
    }
    report['ok'] = (
      all(same)
      and epochs >= 1
      and report['same_layout_twice_equal']
      and report['final_loss_gap'] <= 1e-3
      and all(arrow['parameters_equal'] for arrow in arrows)
      and all(max(a['loss_gap'], a['gradient_norm_gap']) <= 1e-5 for a in arrows)
    )
    print(
      f'{sum(same)} of {self.steps} batches identical, final loss gap {gaps[-1]:.1e}, '
      f'largest {gaps.max():.1e}: {"ok" if report["ok"] else "NOT ok, see report.json"}'
    )
    return report

  def _count_epochs(self, run: Path) -> int:
    """How many epochs of a source the batches held whole; 0 if any had a post twice or not at all.

    The batches are known to be those of one process, so its index tells which posts are in them.
    """
    with (run / 'config.json').open(encoding='utf-8') as file:
      saved = json.load(file)['config']
    shards, loader = open_data(from_json(registry.find(self.target), saved))  # type: ignore[arg-type]
    seen: dict[tuple[int, int], list[Any]] = {}
    for row in range(self.steps * loader.batch_rows):
      source, epoch, pieces = loader.locate(row)
      seen.setdefault((source, epoch), []).append(pieces)
    whole = {key: rows for key, rows in seen.items() if len(rows) == loader.rows[key[0]]}
    exact = 0
    for (source, _), rows in whole.items():
      posts, starts, sizes = (
        np.concatenate([getattr(pieces, name) for pieces in rows])
        for name in ('post', 'start', 'size')
      )
      lengths = shards[source].lengths('train')
      tokens = np.bincount(posts, sizes, len(lengths))
      once = len(set(zip(posts.tolist(), starts.tolist(), strict=True))) == len(posts)
      exact += once and np.array_equal(tokens, lengths + 1)
    return exact if exact == len(whole) else 0


class _Start:
  """One start of the run in `folder`, as the processes of a layout, under way."""

  def __init__(self, layout: Layout, folder: Path, flags: list[str]) -> None:
    self._folder = folder
    self._log = folder.with_name(f'{folder.name}.log')
    command = [sys.executable, '-m', 'lmjax.main', f'--workdir={folder}', *flags, *layout.flags]
    with socket.create_server(('127.0.0.1', 0)) as free:
      port = free.getsockname()[1]
    hosts = [f'--hosts.coordinator=127.0.0.1:{port}', f'--hosts.processes={layout.processes}']
    one = '--xla_force_host_platform_device_count=1'  # the last that is given counts
    environment = {**os.environ, 'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} {one}'}
    self._processes = []
    with self._log.open('ab') as log:
      for number in range(layout.processes):
        mine = [*hosts, f'--hosts.process={number}'] if layout.processes > 1 else []
        self._processes.append(
          subprocess.Popen(command + mine, stdout=log, stderr=log, env=environment)
        )

  def finish(self) -> None:
    """Waits for the end of the run."""
    self._end((0,))

  def stop_after(self, step: int) -> None:
    """Asks one process to stop once `step` was taken; all save at one step and exit."""
    self._wait_for(step)
    self._processes[-1].send_signal(signal.SIGTERM)
    self._end((_SAVED,))

  def _wait_for(self, step: int) -> None:
    deadline = time.monotonic() + _TIMEOUT
    while len(_metrics(self._folder)) < step:
      if any(process.poll() is not None for process in self._processes):
        raise self._failed()
      if time.monotonic() > deadline:
        raise self._failed()
      time.sleep(0.02)

  def _end(self, codes: tuple[int, ...]) -> None:
    try:
      ended = [process.wait(_TIMEOUT) for process in self._processes]
    except subprocess.TimeoutExpired:
      raise self._failed() from None
    if any(code not in codes for code in ended):
      raise self._failed()

  def _kill(self) -> list[int]:
    for process in self._processes:
      process.kill()
    return [process.wait() for process in self._processes]

  def _failed(self) -> UserError:
    codes = self._kill()
    return UserError(f'a start ended with {codes}, not as it should: read {self._log}')


def _metrics(workdir: Path) -> list[dict[str, Any]]:
  """The whole lines of metrics.jsonl so far."""
  path = workdir / 'metrics.jsonl'
  if not path.exists():
    return []
  return [json.loads(line) for line in path.read_bytes().split(b'\n')[:-1]]
