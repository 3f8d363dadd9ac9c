"""One process of several that make the first state of a 300-million-parameter run together.

python born.py PORT PROCESSES PROCESS prints {"before", "peak", "state"}: bytes of memory before, at
most until the state was there, and of the part of the state that this process holds.
"""

import json
import resource
import sys

import jax

from lmjax.models.transformer import Decoder
from lmjax.optim.optimizer import AdamW
from lmjax.parallel.hosts import Hosts
from lmjax.parallel.mesh import Mesh
from lmjax.train.state import make_state

SIZES = {'vocab': 32_768, 'width': 1024, 'layers': 21, 'heads': 16, 'kv_heads': 16, 'head_dim': 64}


def peak_bytes() -> int:
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
  port, processes, process = map(int, sys.argv[1:])
  hosts = Hosts(coordinator=f'127.0.0.1:{port}', processes=processes, process=process)
  hosts.connect({})
  model = Decoder(**SIZES, mlp=2816)
  tx = AdamW().build(model.dims(), 100)
  mesh = Mesh(fsdp=jax.device_count()).build()
  before = peak_bytes()
  state = jax.block_until_ready(make_state(model, tx, 0, mesh))
  peak = peak_bytes()
  held = sum(shard.data.nbytes for x in jax.tree.leaves(state) for shard in x.addressable_shards)
  params = sum(x.size for x in jax.tree.leaves(state.params))
  print(json.dumps({'before': before, 'peak': peak, 'state': held, 'params': params}), flush=True)


if __name__ == '__main__':
  main()
