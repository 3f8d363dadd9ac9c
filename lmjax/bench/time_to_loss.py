"""`bench_time_to_loss`: how long lmjax takes to the loss at which a nanoGPT recipe in torch ends.

The peer trains for a given time after torch.compile has compiled; its clock runs from the start of its
process to the end of training, and what it reaches on the held-out posts is the target. lmjax then trains
`posts_tiny`, with what was best in trials, to the end of its schedule in ever more steps, each time
anew and on the same posts, split and tokenizer, until it is there; its clock runs from the start of its
process too. Caches of both are warm. Loading, compiling and the last save count, evaluating does not.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lmjax.bench import contest
from lmjax.bench.contest import Figure
from lmjax.core import processor, registry
from lmjax.core.config import leaf
from lmjax.core.errors import UserError
from lmjax.core.task import Report, Task
from lmjax.data.prepare import prepare_all
from lmjax.data.shards import Shards
from lmjax.train.pretrain import Pretrain

_EXPERIMENT = 'posts_tiny'


class TimeToLoss(Task):
  """Times training to the loss that a nanoGPT recipe in torch reaches in a given time."""

  seeds: tuple[int, ...] = leaf((0, 1, 2), 'One run of each side for each.', low=0)
  seconds: float = leaf(180.0, 'How long the peer trains, after compiling.', above=0.0)
  steps: tuple[int, ...] = leaf(
    (1300, 1400, 1500, 1600, 1800, 2200, 3000), 'Lengths of our run, tried in turn.', low=1
  )
  settings: tuple[str, ...] = leaf(
    (
      'batch=8',
      'model.layers=1',
      'model.width=192',
      'model.heads=3',
      'model.kv_heads=3',
      'model.mlp=512',
      'optimizer.matrix_lr=0.025',
      'optimizer.peak_lr=8e-3',
    ),
    'Flags of our run: the best of the trials in docs/speed.md, as are those of the peer.',
  )
  width: int = leaf(192, 'Width of the peer.', low=64)
  layers: int = leaf(1, 'Layers of the peer.', low=1)
  heads: int = leaf(3, 'Heads of the peer.', low=1)
  mlp: int = leaf(512, "Hidden size of the peer's feed-forward.", low=1)
  length: int = leaf(128, "Tokens of the peer's rows.", low=2)
  rows: int = leaf(8, "Rows of the peer's step.", low=1)
  lr: float = leaf(5e-3, "The peer's learning rate at its peak.", above=0.0)

  def run(self, workdir: Path) -> Report:
    ours = registry.find(_EXPERIMENT)
    assert isinstance(ours, Pretrain)
    shards = prepare_all([ours.source], ours.split, ours.text)[0]
    tokens = workdir / 'posts.npz'
    export(shards, tokens)
    peer = self._peer(tokens, shards.tokenizer.vocab)
    log = workdir / 'stderr.log'
    print('filling the caches', flush=True)
    _train_peer(peer | {'seconds': 1.0, 'seed': 0}, log)
    rounds = [self._round(peer, seed, workdir) for seed in self.seeds]
    reached = [one['wall_clock'] for one in rounds if one['wall_clock'] is not None]
    ratio = Figure.of(reached) if len(reached) == len(rounds) else None
    return {
      'ratios': {'wall_clock': ratio and ratio.median},
      'wall_clock': ratio and ratio._asdict(),
      'rounds': rounds,
      'peer': peer,
      'cores': processor.cores(),
    }

  def _peer(self, tokens: Path, vocab: int) -> dict[str, Any]:
    """The peer's settings, in bf16 where the CPU multiplies it."""
    shape = {name: getattr(self, name) for name in ('width', 'layers', 'heads', 'mlp', 'length')}
    dtype = 'bfloat16' if processor.multiplies_bf16() else 'float32'
    run = {'tokens': str(tokens), 'seconds': self.seconds, 'steps': None, 'dtype': dtype}
    return {**shape, **run, 'rows': self.rows, 'lr': self.lr, 'vocab': -(-vocab // 64) * 64}

  def _round(self, peer: dict[str, Any], seed: int, workdir: Path) -> dict[str, Any]:
    """Both sides with one seed; `wall_clock` is ours over the peer's, None where it is not reached."""
    log = workdir / 'stderr.log'
    theirs = _train_peer(peer | {'seed': seed}, log)
    print(f'seed {seed}: the peer reached {theirs.bits_per_byte:.3f} in {theirs.seconds:.0f} s')
    tries = []
    for steps in self.steps:
      tries.append(self._train(steps, seed, workdir / 'ours', log))
      last = tries[-1]
      print(f'  lmjax, {steps} steps: {last.bits_per_byte:.3f} in {last.seconds:.0f} s', flush=True)
      if last.bits_per_byte <= theirs.bits_per_byte:
        break
    there = last.bits_per_byte <= theirs.bits_per_byte
    return {
      'seed': seed,
      'peer': theirs._asdict(),
      'lmjax': [one._asdict() for one in tries],
      'wall_clock': last.seconds / theirs.seconds if there else None,
    }

  def _train(self, steps: int, seed: int, workdir: Path, log: Path) -> 'Trained':
    """Trains `posts_tiny` once, its programs compiled before."""
    flags = {'steps': steps, 'seed': seed, 'workdir': workdir, 'evaluate_every': steps + 1}
    flags |= {'checkpoint.every_steps': steps, 'samples': 0, 'baselines': 'false'}
    run = [sys.executable, '-m', 'lmjax.main', f'--experiment={_EXPERIMENT}']
    run += [f'--{name}={value}' for name, value in flags.items()] + [
      f'--{one}' for one in self.settings
    ]
    for more in (['--stop_at=1', '--final_posts=1'], []):
      shutil.rmtree(workdir, ignore_errors=True)
      with contest.Watch() as watch, log.open('a') as file:
        ended = subprocess.run([*run, *more], stdout=file, stderr=file, check=False)
      if ended.returncode:
        raise UserError(f'{_EXPERIMENT} ended with exit code {ended.returncode}: see {log}')
    report = json.loads((workdir / 'report.json').read_text(encoding='utf-8'))
    names = ('bits_per_byte', 'trained_seconds', 'steps', 'params')
    return Trained(*(report[name] for name in names), others=watch.others)


class Trained(NamedTuple):
  """A run to its end: seconds from the start of its process, and the share of cores others used."""

  bits_per_byte: float
  seconds: float
  steps: int
  params: int
  others: float


def export(shards: Shards, path: Path) -> None:
  """Writes the tokens of `shards` for a peer: training posts as one stream, held-out ones apart.

  Every post has its end token behind it; in the stream, and held out, its start token before it.
  """
  tokenizer = shards.tokenizer
  whole = lambda post: np.concatenate([[tokenizer.start], post, [tokenizer.end]]).astype(np.uint32)
  train = [whole(post) for post in shards.stream('train')]
  held_out = [whole(post) for post in shards.stream('held_out')]
  size = sum(len(tokenizer.decode(post)) for post in shards.stream('held_out'))
  lengths = np.array([len(post) for post in held_out])
  np.savez(
    path,
    train=np.concatenate(train),
    held_out=np.concatenate(held_out),
    held_out_lengths=lengths,
    held_out_bytes=size,
  )


def _train_peer(settings: dict[str, Any], log: Path) -> Trained:
  """Trains the peer once.

  Raises:
    UserError: it failed, or torch is not there.
  """
  side = contest.peer('torch', 'pretrain.py', settings)
  with contest.Watch() as watch, log.open('a') as file:
    process = subprocess.Popen(side.command, stdout=subprocess.PIPE, stderr=file, text=True)
    said: dict[str, Any] = {}
    assert process.stdout is not None
    for line in process.stdout:
      said |= json.loads(line)
      if 'seconds' not in said:
        said['seconds'] = watch.seconds
    if process.wait():
      raise UserError(f'the peer ended with exit code {process.returncode}: see {log}')
  names = ('bits_per_byte', 'seconds', 'steps', 'params')
  return Trained(*(said[name] for name in names), others=watch.others)
