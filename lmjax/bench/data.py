"""`bench_data`: is data ever what a run waits for? Tokenising, packing and reading beside a training step.

Corpora of two sizes are made of the default posts, cut and joined anew, and prepared from nothing by
processes of their own: that shows tokens a second and how the peak of memory goes with the size.
Tokenising alone is timed on one core and on all; reading, in batches of the step that `posts_tiny` takes.
"""

import dataclasses
import json
import os
import random
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from lmjax.bench import contest
from lmjax.bench.contest import Figure
from lmjax.bench.side import Turn
from lmjax.bench.train import compile_step
from lmjax.core import processor, registry
from lmjax.core.clock import duration_text
from lmjax.core.config import leaf
from lmjax.core.task import Report, Task
from lmjax.data.loader import Loader
from lmjax.data.prepare import prepare
from lmjax.data.shards import Shards
from lmjax.data.sources import Posts
from lmjax.data.split import Split
from lmjax.data.tokenizer import TokenizerConfig
from lmjax.train.pretrain import Pretrain, open_data
from lmjax.train.state import init_state
from lmjax.train.step import make_step

_EXPERIMENT = 'posts_tiny'
_MB = 10**6


class BenchData(Task):
  """Times preparing and reading of posts beside the training step that consumes them."""

  megabytes: tuple[int, ...] = leaf((100, 1000), 'Sizes of the corpora, in MB of text.', low=1)
  batches: int = leaf(300, 'Batches to read in a turn.', low=1)
  rounds: int = leaf(3, 'Turns of reading and of stepping; the medians are reported.', low=1)

  def run(self, workdir: Path) -> Report:
    log = workdir / 'stderr.log'
    texts = _default_texts()
    prepared = {}
    for size in self.megabytes:
      corpus = workdir / f'{size}.jsonl'
      print(f'{size:,} MB of posts', flush=True)
      posts = write_corpus(texts, size * _MB, corpus)
      prepared[f'{size}'] = {'posts': posts, **_prepare(corpus, log)}
    reading = contest.compete(self._sides(), self.rounds, log)
    step = reading.figure('step', 'tokens_per_second')
    alone = prepared[f'{min(self.megabytes)}']
    report = {
      'ratios': {
        'prepare_vs_step': alone['tokens_per_second'] / step.median,
        'read_vs_step': reading.ratio('read', 'step', 'tokens_per_second').median,
        'tokenise_cores': reading.ratio('tokenise', 'tokenise_1', 'tokens_per_second').median,
      },
      'prepared': prepared,
      'tokenise_tokens_per_second': reading.figure('tokenise', 'tokens_per_second')._asdict(),
      'read_tokens_per_second': reading.figure('read', 'tokens_per_second')._asdict(),
      'step_tokens_per_second': step._asdict(),
      'cores': processor.cores(),
    }
    print(_table(report, step))
    return report

  def _sides(self) -> list[contest.Side]:
    settings = {'batches': self.batches}
    side = lambda name, function, **environment: contest.ours(
      name, f'{__name__}:{function}_turn', settings, **environment
    )
    one = side('tokenise_1', 'tokenise', RAYON_NUM_THREADS='1')
    return [side('read', 'read'), side('step', 'step'), side('tokenise', 'tokenise'), one]


def write_corpus(texts: list[str], size: int, path: Path) -> int:
  """Writes JSONL posts of `size` bytes of text: the first half of one post and the second of another.

  A number makes each of them unlike every other, so that none is dropped as a duplicate.

  Returns:
    how many posts there are.
  """
  draw, written, posts = random.Random(0), 0, 0
  with path.open('w', encoding='utf-8') as file:
    while written < size:
      first, second = draw.choice(texts), draw.choice(texts)
      text = f'{first[: len(first) // 2]} {posts} {second[len(second) // 2 :]}'
      file.write(json.dumps({'text': text}) + '\n')
      written += len(text.encode())
      posts += 1
  return posts


def prepare_turn(settings: dict[str, Any]) -> Turn:
  """Prepares the posts of a file in an empty cache."""

  def turn() -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=settings['scratch']) as cache:
      os.environ['LMJAX_CACHE'] = cache
      start = time.perf_counter()
      shards = prepare(Posts(posts=settings['posts']), Split(), TokenizerConfig())
      seconds = time.perf_counter() - start
      tokens = sum(part['tokens'] for part in shards.manifest['parts'].values())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {'seconds': seconds, 'tokens_per_second': tokens / seconds, 'peak_rss_gib': peak}

  return turn


def read_turn(settings: dict[str, Any]) -> Turn:
  """Reads shuffled, packed batches of `posts_tiny`, a later stretch of the run each turn."""
  task, _, loader = _opened()
  first = 0

  def turn() -> dict[str, Any]:
    nonlocal first
    start = time.perf_counter()
    for _ in loader.iterate(first, first + settings['batches']):
      pass
    seconds = time.perf_counter() - start
    first += settings['batches']
    return {'tokens_per_second': settings['batches'] * task.batch * task.length / seconds}

  return turn


def tokenise_turn(settings: dict[str, Any]) -> Turn:
  """Tokenises the default posts, on as many cores as RAYON_NUM_THREADS says."""
  del settings
  texts, tokenizer = _default_texts(), _opened()[1][0].tokenizer

  def turn() -> dict[str, Any]:
    start = time.perf_counter()
    tokens = sum(map(len, tokenizer.encode_batch(texts)))
    return {'tokens_per_second': tokens / (time.perf_counter() - start)}

  turn()
  return turn


def step_turn(settings: dict[str, Any]) -> Turn:
  """Takes warm training steps of `posts_tiny`, for about three seconds."""
  task, _, loader = _opened()
  model = task.model.with_vocab(TokenizerConfig().vocab)
  dtype = model.dtype if processor.multiplies_bf16() else 'float32'
  model = dataclasses.replace(model, dtype=dtype)
  tx = task.optimizer.build(model.dims(), task.steps)
  state = jax.jit(lambda: init_state(model, tx, 0))()
  batch = jax.tree.map(jax.numpy.asarray, loader.batch(0))
  step = compile_step(make_step(task.objective, model, tx, 1), state, batch)

  def take(count: int) -> float:
    nonlocal state
    start = time.perf_counter()
    for _ in range(count):
      state, _ = step(state, batch)
    jax.block_until_ready(state)
    return (time.perf_counter() - start) / count

  take(2)
  count = max(1, round(3.0 / take(1)))
  return lambda: {'tokens_per_second': task.batch * task.length / take(count)}


def _opened() -> tuple[Pretrain, list[Shards], Loader]:
  """`posts_tiny`, its posts and its batches."""
  task = registry.find(_EXPERIMENT)
  assert isinstance(task, Pretrain)
  return task, *open_data(task)


def _default_texts() -> list[str]:
  """The default posts."""
  return list(_opened()[1][0].texts('train'))


def _prepare(corpus: Path, log: Path) -> dict[str, Any]:
  """What preparing `corpus` once takes."""
  settings = {'posts': str(corpus), 'scratch': str(corpus.parent)}
  side = contest.ours('prepare', f'{__name__}:prepare_turn', settings)
  return contest.compete([side], 1, log).turns['prepare'][0].figures


def _table(report: Report, step: Figure) -> str:
  ratios = report['ratios']
  lines = [f'a step of {_EXPERIMENT} consumes {step} tokens a second; beside that']
  lines += [
    f'  preparing posts    {ratios["prepare_vs_step"]:.1f} times as fast',
    f'  reading batches    {ratios["read_vs_step"]:.1f} times as fast',
    f'  {report["cores"]} cores tokenise {ratios["tokenise_cores"]:.2f} times as fast as one',
  ]
  for size, one in report['prepared'].items():
    took = duration_text(one['seconds'])
    lines.append(f'  {size} MB prepared in {took}, {one["peak_rss_gib"]:.2f} GiB at the peak')
  return '\n'.join(lines)
