"""A batch depends on configuration, seed and step: not on what was read before, nor by whom."""

import json
import resource
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
from generated import make_posts, prepare_posts, write_posts

from lmjax.core.types import Batch
from lmjax.data import packing
from lmjax.data.loader import Loader
from lmjax.data.mixture import Mixture, Schedule, Source
from lmjax.data.packing import Packing
from lmjax.data.shards import Shards
from lmjax.data.sources import Posts

MIXTURE = Mixture(
  [Source(Posts(posts='a'), ((0, 3.0),)), Source(Posts(posts='b'), ((0, 1.0), (4, 3.0)))]
)


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
  monkeypatch.setattr(packing, 'WINDOW', 64)


@pytest.fixture(params=['best_fit', 'split', 'mixture'])
def make(prepared, request):
  """Makes a loader of 300 posts, or of a mixture of two sources; each call is a cold start."""

  def cold(seed: int = 0, batch: int = 12) -> Loader:
    if request.param == 'mixture':
      shards = [prepared(300, 1), prepared(300, 1)]
      return Loader(shards, batch=batch, length=48, seed=seed, mixture=MIXTURE)
    return Loader([prepared(300, 1)], batch=batch, length=48, seed=seed, method=request.param)

  return cold


def count_starts(rows: list[Batch], shards: Shards) -> int:
  """Posts that begin in `rows`; a start token in padding is none."""
  return sum(
    int(((row.tokens_BL == shards.tokenizer.start) & (row.weights_BL > 0)).sum()) for row in rows
  )


def assert_equal(one: Batch, other: Batch) -> None:
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    np.testing.assert_array_equal(a, b)


def test_a_cold_start_gives_the_same_batch(make):
  warm = make()
  for step in (0, 1, 40, 7, 41):
    assert_equal(make().batch(step), warm.batch(step))


def test_a_resumed_run_sees_the_batches_of_an_unbroken_one(make):
  unbroken = list(make().iterate(0, 30))
  assert len(unbroken) == 30
  for at, batch in zip(range(17, 30), make().iterate(17, 30), strict=True):
    assert_equal(batch, unbroken[at])
    assert_equal(batch, make().batch(at))


def test_a_batch_far_away_is_the_one_that_is_reached_by_stepping(make):
  far = 10**6
  *_, reached = make(batch=3).iterate(far - 300, far + 1)
  assert_equal(reached, make(batch=3).batch(far))


@pytest.mark.parametrize('hosts', [1, 2, 3, 4, 8])
def test_the_hosts_rows_are_the_batch_and_each_record_is_read_once(make, prepared, hosts):
  whole = make()
  before = whole.bytes_read
  batch = whole.batch(5)
  alone = whole.bytes_read - before
  read = []
  slices = []
  for host in range(hosts):
    loader = make()
    before = loader.bytes_read
    slices.append(loader.batch(5, range(12 * host // hosts, 12 * (host + 1) // hosts)))
    read.append(loader.bytes_read - before)
  assert_equal(jax.tree.map(lambda *rows: np.concatenate(rows), *slices), batch)
  assert {len(rows.tokens_BL) for rows in slices} <= {12 // hosts, -(-12 // hosts)}
  assert sum(read) == alone
  if hosts > 1:
    assert max(read) < alone


def test_a_host_without_a_row_reads_nothing(make):
  loader = make(batch=2)
  assert loader.batch(0, []).tokens_BL.shape == (0, 48)
  assert loader.bytes_read == make().bytes_read


def test_a_row_is_its_place_in_the_batch(make):
  loader = make()
  batch = loader.batch(3)
  rows = [loader.row(36 + place) for place in range(12)]
  assert_equal(jax.tree.map(lambda *each: np.concatenate(each), *rows), batch)


def test_threads_that_share_a_loader_get_what_one_gets(make):
  expected = [make().batch(step) for step in range(24)]
  shared = make()
  with ThreadPoolExecutor(8) as pool:
    for one, other in zip(pool.map(shared.batch, range(24)), expected, strict=True):
      assert_equal(one, other)


def test_another_seed_is_another_order(make):
  assert not np.array_equal(make(seed=0).batch(0).tokens_BL, make(seed=1).batch(0).tokens_BL)


@pytest.mark.parametrize('method', ['best_fit', 'split'])
def test_an_epoch_holds_every_row_once_in_an_order_of_its_own(prepared, method):
  shards = prepared(300, 1)
  loader = Loader([shards], batch=1, length=48, seed=0, method=method)
  epochs = [
    [loader.row(row) for row in range(first, first + loader.rows[0])]
    for first in (0, loader.rows[0])
  ]
  assert count_starts(epochs[0], shards) == shards.posts('train')
  contents = [[row.tokens_BL.tobytes() for row in rows] for rows in epochs]
  assert len(set(contents[0])) == loader.rows[0]  # all rows differ, as posts are numbered
  assert sorted(contents[0]) == sorted(contents[1])
  assert contents[0] != contents[1]


def test_an_epoch_predicts_every_token_once(prepared):
  shards = prepared(300, 1)
  loader = Loader([shards], batch=1, length=48, seed=3)
  rows = [loader.row(row) for row in range(loader.rows[0])]
  targets = np.concatenate([row.targets_BL[row.weights_BL > 0] for row in rows])
  posts = shards.read('train', range(shards.posts('train')))
  expected = np.concatenate([[*post, shards.tokenizer.end] for post in posts])
  np.testing.assert_array_equal(np.sort(targets), np.sort(expected))
  positions = sum(len(post) + 1 for post in posts)
  assert loader.fill == [positions / (len(rows) * 48)]


def test_a_mixture_walks_each_source_as_if_it_were_alone(prepared):
  shards = prepared(300, 1)
  mixed = Loader([shards, shards], batch=4, length=48, seed=0, mixture=MIXTURE)
  alone = Loader([shards], batch=1, length=48, seed=0)
  schedule = Schedule(MIXTURE.phases, 4, seed=0)
  located = [schedule.locate(row) for row in range(200)]
  assert {source for source, _ in located} == {0, 1}
  for row, (source, counter) in enumerate(located):
    if source == 0:
      assert_equal(mixed.row(row), alone.row(counter))


def test_the_order_of_rows_on_disk_is_irrelevant(cache, tmp_path):
  posts = make_posts(150, seed=2)
  one = prepare_posts(write_posts(tmp_path / 'a.jsonl', posts))
  two = prepare_posts(write_posts(tmp_path / 'b.jsonl', posts[::-1]))
  assert one.folder != two.folder
  for step in range(5):
    batches = [Loader([shards], batch=4, length=48, seed=0).batch(step) for shards in (one, two)]
    assert_equal(*batches)


def test_held_out_posts_can_be_batched_too(prepared):
  shards = prepared(300, 1)
  loader = Loader([shards], batch=2, length=48, seed=0, part='held_out')
  rows = [loader.row(row) for row in range(loader.rows[0])]
  assert count_starts(rows, shards) == shards.posts('held_out')


def test_closing_the_iterator_ends_its_threads(make):
  threads = threading.active_count()
  batches = make().iterate(0, 10**6)
  next(batches)
  assert threading.active_count() > threads
  batches.close()
  deadline = time.monotonic() + 10
  while threading.active_count() > threads and time.monotonic() < deadline:
    time.sleep(0.01)  # for the batches that were begun
  assert threading.active_count() == threads


LEFT_OPEN = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from lmjax.data.loader import Loader
from lmjax.data.shards import Shards
batches = Loader([Shards(Path(sys.argv[1]))], batch=4, length=48, seed=0).iterate(0, 10**6)
print(next(batches).tokens_BL.sum())
"""


def test_a_program_ends_with_an_iterator_left_open(prepared):
  command = [
    sys.executable,
    '-W',
    'error',
    '-c',
    LEFT_OPEN,
    str(prepared(300, 1).folder),
    str(Path.cwd()),
  ]
  done = subprocess.run(command, capture_output=True, text=True, timeout=300)
  assert (done.returncode, done.stderr) == (0, '')


def test_a_failure_in_a_thread_reaches_the_reader(cache, tmp_path):
  shards = prepare_posts(write_posts(tmp_path / 'a.jsonl', make_posts(60, seed=1)))
  loader = Loader([shards], batch=4, length=48, seed=0)
  (shards.folder / 'train-00000.array_record').write_bytes(b'')
  with pytest.raises(ValueError, match='is damaged'):
    next(loader.iterate(0, 5))


def _resident() -> int:
  return int(Path('/proc/self/statm').read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(not Path('/proc/self/statm').exists(), reason='needs /proc')
def test_a_thousand_million_posts_open_at_once(prepared, tmp_path, monkeypatch):
  monkeypatch.setattr(packing, 'WINDOW', 4096)
  posts, windows = 10**9, -(-(10**9) // 4096)
  # A sparse file of lengths 0, so that a window packs into 32 rows of 128 and the last into 20.
  np.lib.format.open_memmap(tmp_path / 'train.lengths.npy', 'w+', np.uint32, (posts,))
  starts = np.append(np.arange(windows) * 32, (windows - 1) * 32 + 20)
  np.save(tmp_path / 'train.packing-best_fit-128-4096.npy', starts)
  small = prepared(300, 1)
  entry = {**small.manifest['parts']['train'], 'posts': posts}
  shard = entry['shards'][0]
  entry['shards'] = [{**shard, 'posts': 10**6} for _ in range(1000)]
  manifest = {**small.manifest, 'parts': {'train': entry}}
  (tmp_path / 'manifest.json').write_text(json.dumps(manifest))
  began, memory = time.process_time(), _resident()  # others may have the processor meanwhile
  packed = Packing(Shards(tmp_path), 'train', 128, 'best_fit')
  pieces = packed.row(windows - 1, 19)
  assert time.process_time() - began < 2
  assert _resident() - memory < 200 << 20
  assert packed.rows == starts[-1]
  np.testing.assert_array_equal(np.sort(pieces.post)[-1:], [posts - 1])
