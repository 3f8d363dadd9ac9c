"""Small compiled programs for the tests of plans: made once in a session, for H100s that are not here."""

import functools
import tempfile
from pathlib import Path

from unassembled import unassembled

from lmjax.core import config, registry
from lmjax.parallel.mesh import Mesh
from lmjax.plan.compile import Program, compile_step

SMALL = {
  'model.vocab': 4096,
  'model.width': 512,
  'model.layers': 4,
  'model.heads': 8,
  'model.kv_heads': 8,
  'model.head_dim': 64,
  'model.mlp': 2048,
  'vocab': 4096,
  'length': 512,
  'batch': 128,
}
DENSE, EXPERTS = 'posts_dense_1b', 'posts_moe_314b'


def small_task(experiment: str, mesh: Mesh, **changes):
  """An experiment of some million parameters over a mesh."""
  axes = {f'mesh.{axis}': size for axis, size in mesh.sizes.items()}
  return config.override(registry.find(experiment), SMALL | axes | changes)


@functools.cache
def compiled(experiment: str, mesh: Mesh, **changes) -> tuple:
  """(task, its step compiled for H100s)."""
  task = small_task(experiment, mesh, **changes)
  with unassembled(), tempfile.TemporaryDirectory() as folder:
    program: Program = compile_step(experiment, task, 'h100', Path(folder))
  return task, program
