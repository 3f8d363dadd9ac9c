"""How fast posts are encoded, beside sentence-transformers, and found among a million vectors.

S posts, D size of a vector, Q queries.
"""

import importlib.util
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from lmjax.bench.contest import compete, ours, peer, resident_bytes
from lmjax.bench.side import Turn
from lmjax.core import processor
from lmjax.core.config import leaf, part
from lmjax.core.errors import UserError
from lmjax.core.metrics import progress
from lmjax.core.task import Report, Task
from lmjax.data.sources import Posts, Rows
from lmjax.interop.encoder import MINILM
from lmjax.search.embed import open_embedder
from lmjax.search.ranking import POOL
from lmjax.search.vectors import GRAPH, Precision, build_vectors

_BLOCK = 20_000  # vectors made and added together
_NEAR = 10  # neighbours that are to be found
_MIXED = 8  # posts that the direction of a move is mixed of
_SAMPLE = 200_000  # vectors that lists are learnt from


class BenchSearch(Task):
  """Measures encoding and the search of many vectors; peers need sentence-transformers installed.

  The vectors are those of real posts and, beyond these, posts moved so far at random that their cosine
  with where they were is that of a real post with its 10th neighbour, drawn anew for each. Queries are
  posts that were left out. Times are of vectors alone, without words and texts; `..._embedding` has the
  query's encoding in it. `queries_per_second` is kept up for `seconds` by as many threads as cores.
  """

  source: Posts = part(Posts(), 'Whose posts are encoded.', inline=True)
  real: int = leaf(20_000, 'Posts that are encoded for vectors.', low=100)
  vectors: int = leaf(1_000_000, 'Vectors that are searched; 0: none.', low=0)
  queries: int = leaf(500, 'Queries of these.', low=1)
  seconds: float = leaf(5.0, 'How long queries are asked without a break.', above=0.0)
  precision: Precision = leaf('float32', 'Of the vectors in memory.')
  encoded: int = leaf(1000, 'Posts that are encoded in a turn.', low=1)
  rounds: int = leaf(3, 'Turns of encoding; 0: none. The medians are reported.', low=0)
  peers: bool = leaf(True, 'Encode with sentence-transformers as well.')
  seed: int = leaf(0, 'Of the vectors.', low=0)

  def run(self, workdir: Path) -> Report:
    """Prints and reports what was measured."""
    if self.rounds and self.peers and importlib.util.find_spec('sentence_transformers') is None:
      raise UserError(
        'the peer is sentence-transformers: pip install sentence-transformers, or pass --peers=false'
      )
    if self.vectors and self.vectors <= self.real:
      raise UserError(
        f'vectors={self.vectors} are no more than real={self.real}: pass more, or 0 for none'
      )
    texts = [
      post.text for _, post in zip(range(self.real + self.queries), self._read(), strict=False)
    ]
    report: Report = {'posts': len(texts)}
    if self.rounds:
      report['encoding'] = self._encode(texts, workdir)
      print(f'encoding: {report["encoding"]}', flush=True)
    if self.vectors:
      embedder = open_embedder(MINILM)
      embedded = embedder.embed_kept(texts, progress('posts encoded'))
      report |= self._search(embedded, lambda number: embedder.embed([texts[number]])[0])
    return report

  def _read(self) -> Iterator[Any]:
    return iter(self.source.read(Rows()))

  def _encode(self, texts: list[str], workdir: Path) -> dict[str, Any]:
    """Posts a second of every side, and our ratio to the peer, in the same rounds."""
    file = workdir / 'posts.json'
    chosen = np.random.default_rng(self.seed).permutation(len(texts))[: self.encoded]
    file.write_text(json.dumps([texts[index] for index in chosen.tolist()]), encoding='utf-8')
    settings = {'posts': str(file), 'encoder': MINILM}
    sides = [ours('lmjax', 'lmjax.bench.search:side', settings)]
    if self.peers:
      folder = str(open_embedder(MINILM).loaded.path)
      sides.append(peer('sentence-transformers', 'embed.py', settings | {'encoder': folder}))
    contest = compete(sides, self.rounds, workdir / 'sides.log')
    told: dict[str, Any] = {
      side: contest.figure(side, 'posts_per_second')._asdict() for side in contest.turns
    }
    if self.peers:
      told['ratio'] = contest.ratio('lmjax', 'sentence-transformers', 'posts_per_second')._asdict()
    return told | {'disturbed_turns': contest.disturbed}

  def _search(self, embedded: np.ndarray, encode: Callable[[int], np.ndarray]) -> dict[str, Any]:
    """Builds the index and asks it.

    Args:
      embedded: f32 [queries + real, D].
      encode: makes the vector of a query, by its number, anew.
    """
    queries, real = embedded[: self.queries], embedded[self.queries :]
    sample = None
    if self.vectors > GRAPH:
      sample = next(grown(real, min(_SAMPLE, self.vectors), self.seed, _SAMPLE))
    index = build_vectors(self.vectors, real.shape[1], sample, self.precision)
    before = resident_bytes(os.getpid())
    best = np.full((len(queries), _NEAR), -np.inf, np.float32)
    first = np.zeros((len(queries), _NEAR), np.int64)
    built, start = 0.0, 0
    for block in grown(real, self.vectors, self.seed, _BLOCK):
      begun = time.perf_counter()
      index.add(np.arange(start, start + len(block)), block)
      built += time.perf_counter() - begun
      best, first = _nearest(queries, block, start, best, first)
      start += len(block)
      print(f'{start:,} of {self.vectors:,} vectors, {start / built:,.0f}/s', flush=True)
    found = [index.nearest(query, POOL)[:_NEAR] for query in queries]
    hits = sum(len(np.intersect1d(a, b)) for a, b in zip(found, first, strict=True))
    told: dict[str, Any] = {
      'vectors': len(index),
      'kind': index.kind,
      'build_seconds': built,
      'index_bytes': resident_bytes(os.getpid()) - before,
      'recall_at_10': hits / first.size,
      'tenth_cosine': float(np.median(best[:, -1])),
    }
    asks = {
      '': lambda number: index.nearest(queries[number], POOL),
      '_embedding': lambda number: index.nearest(encode(number), POOL),
    }
    for name, ask in asks.items():
      told[f'query_ms{name}'] = time_each(ask, len(queries))
      told[f'queries_per_second{name}'] = keep_asking(ask, len(queries), self.seconds)
    for name, value in told.items():
      print(f'{name:32} {value}', flush=True)
    return told


def time_each(ask: Callable[[int], Any], count: int) -> dict[str, float]:
  """Milliseconds of `ask` of each number below `count`, one after another, each having been asked before."""
  times = []
  for number in [*range(count)] * 2:
    begun = time.perf_counter()
    ask(number)
    times.append(1000 * (time.perf_counter() - begun))
  p50, p99 = np.percentile(times[count:], (50, 99)).tolist()
  return {'p50': p50, 'p99': p99}


def keep_asking(ask: Callable[[int], Any], count: int, seconds: float) -> float:
  """Times a second that as many threads as there are cores get through `ask` in `seconds`."""
  cores, begun = processor.cores(), time.perf_counter()

  def work(place: int) -> int:
    done = 0
    while time.perf_counter() - begun < seconds:
      ask((place + done * cores) % count)
      done += 1
    return done

  with ThreadPoolExecutor(cores) as pool:
    done = sum(pool.map(work, range(cores)))
  return done / (time.perf_counter() - begun)


def grown(real: np.ndarray, count: int, seed: int, block: int) -> Iterator[np.ndarray]:
  """`count` vectors f32 [<= block, D] of length 1: the real ones, then such as lie around them.

  Each of these is a real post x turned away: c x + sqrt(1 - c^2) u, where c is the cosine of a random post
  with its 10th neighbour, and u a random sum of other posts (so that it lies where posts do), without what
  it has of x and of length 1.
  """
  rng = np.random.default_rng(seed)
  some = real[rng.permutation(len(real))[:1000]]
  near = np.sort(some @ real.T, axis=1)[:, -_NEAR - 1]  # the nearest is the post itself
  made = 0
  while made < count:
    size = min(block, count - made)
    kept = real[made : made + size]
    more = size - len(kept)
    x = real[rng.integers(len(real), size=more)]
    y = np.zeros_like(x)
    for _ in range(_MIXED):
      y += rng.standard_normal((more, 1), np.float32) * real[rng.integers(len(real), size=more)]
    u = y - np.sum(x * y, axis=1, keepdims=True) * x
    u /= np.maximum(np.linalg.norm(u, axis=1, keepdims=True), 1e-6)
    c = np.clip(near[rng.integers(len(near), size=more)], -1, 1)[:, None]
    yield np.concatenate([kept, c * x + np.sqrt(1 - c * c) * u]).astype(np.float32)
    made += size


def _nearest(queries, block, start, best, first) -> tuple[np.ndarray, np.ndarray]:
  """The _NEAR best cosines so far and whose they are, f32 and i64 [Q, _NEAR], the best first."""
  near = queries @ block.T
  some = np.argpartition(-near, min(_NEAR, near.shape[1]) - 1, axis=1)[:, :_NEAR]
  best = np.concatenate([best, np.take_along_axis(near, some, axis=1)], axis=1)
  first = np.concatenate([first, some + start], axis=1)
  order = np.argsort(-best, axis=1)[:, :_NEAR]
  return np.take_along_axis(best, order, axis=1), np.take_along_axis(first, order, axis=1)


def side(settings: dict[str, Any]) -> Turn:
  """Encodes posts: `settings` as of tools/bench/peers/embed.py, `encoder` as of `open_embedder`."""
  texts = json.loads(Path(settings['posts']).read_text(encoding='utf-8'))
  embedder = open_embedder(settings['encoder'])

  def turn() -> dict[str, Any]:
    begun = time.perf_counter()
    embedder.embed(texts)
    return {'posts_per_second': len(texts) / (time.perf_counter() - begun)}

  turn()
  return turn
