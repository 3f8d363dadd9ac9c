"""One process of several that save and restore together, for the tests that start it as such.

    python member.py COORDINATOR PROCESSES PROCESS DEVICES FOLDER ACTION...

An action is save:STEP, full:STEP (a save for which the disk of the last process has no room),
restore:STEP (checked against what was saved) or keep_saving:STEP (and on). Says what it has done.
"""

import itertools
import os
import resource
import sys
from typing import Any

if __name__ == '__main__':
  os.environ['JAX_PLATFORMS'] = 'cpu'
  os.environ['XLA_FLAGS'] = f'--xla_force_host_platform_device_count={sys.argv[4]}'

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lmjax.checkpoint import store as store_module
from lmjax.checkpoint.store import Store
from lmjax.core import tree
from lmjax.core.errors import UserError
from lmjax.core.storage import at
from lmjax.parallel import hosts

_SPECS = {
  'params/split': PartitionSpec(('data', 'fsdp')),
  'params/half': PartitionSpec(None, 'fsdp'),
  'params/alike': PartitionSpec(),
  'step': PartitionSpec(),
}


def make_host_state(step: int) -> dict[str, Any]:
  """What is saved under `step`, on the host: about 1.6 MB."""
  rng = np.random.default_rng(step)
  normal = lambda *shape: rng.standard_normal(shape, np.float32)
  params = {'split': normal(480, 256), 'half': normal(128, 1024), 'alike': normal(1200, 128)}
  return {'params': params, 'step': np.int32(step)}


def shardings(fsdp: int) -> dict[str, Any]:
  """Where its arrays lie: one over all devices, one over `fsdp` of them, two on each."""
  mesh = Mesh(np.asarray(jax.devices()).reshape(-1, fsdp), ('data', 'fsdp'))
  where = lambda name, _: NamedSharding(mesh, _SPECS[name])
  return tree.map_with_path(where, make_host_state(0))


def abstract(fsdp: int) -> dict[str, Any]:
  describe = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
  return jax.tree.map(describe, make_host_state(0), shardings(fsdp))


def place(step: int, fsdp: int) -> dict[str, Any]:
  put = lambda x, where: jax.make_array_from_callback(x.shape, where, lambda index: x[index])
  return jax.tree.map(put, make_host_state(step), shardings(fsdp))


def restore(store: Store, step: int) -> None:
  restored = store.restore(abstract(jax.local_device_count()))
  assert restored is not None
  assert (restored.step, restored.extra) == (step, {'step': step})
  expected = dict(tree.paths(make_host_state(step)))
  for name, array in tree.paths(restored.state):
    for shard in array.addressable_shards:
      np.testing.assert_array_equal(np.asarray(shard.data), expected[name][shard.index], name)
  print('restored', step, flush=True)


def act(store: Store, action: str, step: int) -> None:
  if action == 'restore':
    restore(store, step)
    return
  if action == 'keep_saving':
    for later in itertools.count(step):
      act(store, 'save', later)
  if action == 'full' and hosts.index() == hosts.count() - 1:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, -1))
  store.save(step, place(step, jax.local_device_count()), {'step': step})
  print('began', step, flush=True)
  try:
    store.wait()
  except (UserError, ValueError) as error:
    if action != 'full':
      raise
    print('refused', step, str(error).splitlines()[0], flush=True)
  else:
    print('saved', step, flush=True)
  resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))


def main(arguments: list[str]) -> None:
  coordinator, processes, process, _, folder, *actions = arguments
  config = hosts.Hosts(
    coordinator=coordinator, processes=int(processes), process=int(process), timeout=60.0
  )
  config.connect()
  store_module._SEEN_SECONDS = 0.5
  try:
    with Store(at(folder), keep_latest=2, keep_every=None, files={'config.json': '{}'}) as store:
      for text in actions:
        action, _, step = text.partition(':')
        act(store, action, int(step))
  except Exception as error:
    hosts.leave(error)
  hosts.leave()


if __name__ == '__main__':
  main(sys.argv[1:])
