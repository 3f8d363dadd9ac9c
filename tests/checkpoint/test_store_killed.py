"""SIGKILL at random moments of open saves, in real processes: what was completed is never lost."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from lmjax.checkpoint.store import Store

# Saves as fast as it can; says when a save began (b) and when it was complete (c).
_CHILD = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp
from lmjax.checkpoint.store import Store

store = Store(Path(sys.argv[1]), keep_latest=2, keep_every=None, files={'config.json': '{}'})
where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
shape = jax.ShapeDtypeStruct((1 << 20,), jnp.int32, sharding=where)
found = store.restore({'a': shape, 'b': shape})
step = found.step if found else 0
while True:
  step += 1
  array = jnp.full(shape.shape, step, jnp.int32)
  store.save(step, {'a': array, 'b': array + 1}, {'step': step})
  print('b', step, flush=True)
  store.wait()
  print('c', step, flush=True)
"""


def _run_and_kill(folder: Path, rng: random.Random) -> int:
  """Starts a child and kills it soon after one of its saves began; returns the last it completed."""
  command = [sys.executable, '-c', _CHILD, str(folder)]
  child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
  assert child.stdout is not None
  lines = [child.stdout.readline() for _ in range(1 + 2 * rng.randrange(6))]
  time.sleep(rng.uniform(0.0, 0.05))
  child.kill()
  lines += child.communicate()[0].splitlines()
  assert child.returncode == -signal.SIGKILL
  return max((int(line.split()[1]) for line in lines if line.startswith('c')), default=0)


def test_a_kill_at_any_moment_of_a_save_loses_no_completed_one(tmp_path):
  folder, rng, completed, inside = tmp_path / 'checkpoints', random.Random(0), 0, 0
  where = SingleDeviceSharding(jax.devices()[0])
  shape = jax.ShapeDtypeStruct((1 << 20,), jnp.int32, sharding=where)
  for _ in range(6):
    completed = max(completed, _run_and_kill(folder, rng))
    inside += any(folder.glob('*.tmp'))
    with Store(folder, keep_latest=2, keep_every=None, files={}) as store:
      state, extra, step = store.restore({'a': shape, 'b': shape}) or (None, {}, 0)
    assert step >= completed
    if state is not None:
      assert extra == {'step': step}
      assert bool(jnp.all(state['a'] == step) & jnp.all(state['b'] == step + 1))
  assert completed > 0
  assert inside >= 3  # 6 of 6 on a quiet machine
