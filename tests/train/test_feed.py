"""A process reads the rows that its devices hold and no others, and together they are the batch."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from ports import free_port

from lmjax.data.loader import Loader
from lmjax.data.prepare import prepare
from lmjax.data.sources import Posts
from lmjax.data.split import Split
from lmjax.data.tokenizer import TokenizerConfig
from lmjax.parallel.mesh import Mesh
from lmjax.train.audit import Audit
from lmjax.train.feed import Feed

POSTS = Path(__file__).parents[1] / 'data' / 'fixture' / 'posts.jsonl'
BATCH, LENGTH, STEPS = 8, 32, 3

# One of several processes: what it reads of the first batches on each mesh, and what its shards hold.
READ = """
import json, sys
import jax
from lmjax.data.loader import Loader
from lmjax.data.shards import Shards
from lmjax.parallel import hosts
from lmjax.parallel.hosts import Hosts
from lmjax.parallel.mesh import Mesh
from lmjax.train.audit import Audit
from lmjax.train.feed import Feed
from pathlib import Path

port, process, folder, batch, length, steps, *meshes = sys.argv[1:]
Hosts(coordinator=f'127.0.0.1:{port}', processes=2, process=int(process)).connect()
for sizes in map(json.loads, meshes):
  shards = Shards(Path(folder))
  loader = Loader([shards], batch=int(batch), length=int(length), seed=0)
  feed = Feed(loader, Mesh(**sizes).build(), Audit(None))
  held = []
  for batch_BL in feed.batches(0, int(steps)):
    local = batch_BL.tokens_BL.addressable_shards
    held.append([[[list(s.indices(n)) for s, n in zip(x.index, batch_BL.tokens_BL.shape)], x.data.tolist()] for x in local])
  print(json.dumps({'rows': feed.rows, 'bytes': loader.bytes_read, 'held': held}), flush=True)
hosts.leave()
"""
MESHES = ({'data': 4}, {'data': 2, 'tensor': 2}, {'fsdp': 2, 'context': 2}, {'context': 4})
ROWS = (([0, 4], [4, 8]), ([0, 4], [4, 8]), ([0, 4], [4, 8]), ([0, 8], [0, 8]))


@pytest.fixture(scope='module')
def shards(tmp_path_factory):
  cache = tmp_path_factory.mktemp('cache')
  posts = shutil.copy(POSTS, cache)
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('LMJAX_CACHE', str(cache))
    return prepare(Posts(posts=str(posts)), Split(), TokenizerConfig(vocab=300))


@pytest.fixture(scope='module')
def read(shards):
  """What each of two processes with two devices has printed, a dict for each mesh."""
  port = free_port()
  environment = {**os.environ, 'XLA_FLAGS': '--xla_force_host_platform_device_count=2'}
  words = [str(shards.folder), str(BATCH), str(LENGTH), str(STEPS), *map(json.dumps, MESHES)]
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', READ, str(port), str(process), *words],
      env=environment,
      stdout=subprocess.PIPE,
      text=True,
    )
    for process in range(2)
  ]
  try:
    outs = [process.communicate(timeout=300)[0] for process in processes]
  finally:
    for process in processes:
      process.kill()
  return [[json.loads(line) for line in out.splitlines() if line[0] == '{'] for out in outs]


def new_loader(shards):
  return Loader([shards], batch=BATCH, length=LENGTH, seed=0)


@pytest.mark.parametrize('mesh', range(len(MESHES)), ids=map(str, MESHES))
def test_a_process_reads_only_the_rows_of_its_devices(read, shards, mesh):
  for process, (first, stop) in zip(read, ROWS[mesh], strict=True):
    assert process[mesh]['rows'] == list(range(first, stop))
    loader = new_loader(shards)
    before = loader.bytes_read
    for step in range(STEPS):
      loader.batch(step, range(first, stop))
    assert process[mesh]['bytes'] == loader.bytes_read - before
  whole = new_loader(shards)
  for step in range(STEPS):
    found = np.full((BATCH, LENGTH), -1)
    for process in read:
      for (rows, columns), values in process[mesh]['held'][step]:
        found[slice(*rows), slice(*columns)] = values
    np.testing.assert_array_equal(found, whole.batch(step).tokens_BL)


def test_one_process_has_the_whole_batch(shards):
  loader = new_loader(shards)
  feed = Feed(loader, Mesh(data=2, context=2).build(), Audit(None))
  assert feed.rows == list(range(BATCH))
  [batch] = feed.batches(5, 6)
  jax.tree.map(np.testing.assert_array_equal, batch, loader.batch(5))
  assert jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), batch) == jax.tree.map(
    lambda x: (x.shape, x.dtype, x.sharding), feed.abstract()
  )
