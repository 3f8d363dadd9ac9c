"""The device mesh: six named axes, size 1 = off. The only place that makes one.

Knows nothing of models: which tensor dimension goes on which axis stands in `sharding`.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import AbstractMesh, AxisType

from lmjax.core.config import Config, fields, leaf
from lmjax.core.errors import UserError
from lmjax.parallel import hosts

AXES = ('data', 'fsdp', 'expert', 'context', 'tensor', 'pipe')
# Devices in order, those of one host next to each other, are dealt to the last axis first: tensor
# talks several times a layer, data once a step.
QUIETEST_FIRST = ('data', 'pipe', 'fsdp', 'expert', 'context', 'tensor')


class Mesh(Config):
  """How many ways each kind of parallelism splits the work; the product is the devices used."""

  data: int = leaf(1, 'Replicas, each with its share of the batch.', low=1, run=True)
  fsdp: int = leaf(1, 'Shards of the batch and of parameters and moments.', low=1, run=True)
  expert: int = leaf(1, 'Shards of the batch and of the experts.', low=1, run=True)
  context: int = leaf(1, 'Shards of the sequence length.', low=1, run=True)
  tensor: int = leaf(
    1, 'Shards of heads, MLP and vocabulary; of the length in norms.', low=1, run=True
  )
  pipe: int = leaf(1, 'Stages of layers, which microbatches go through.', low=1, run=True)

  @property
  def sizes(self) -> dict[str, int]:
    return {field.name: getattr(self, field.name) for field in fields(self)}

  @property
  def devices(self) -> int:
    return math.prod(self.sizes.values())

  def build(self) -> jax.sharding.Mesh:
    """A mesh over this machine's devices; UserError where there are too few."""
    here = by_machine(jax.devices(), hosts.machines())
    if self.devices > len(here):
      raise UserError(
        f'mesh {self} needs {self.devices} devices, here are {len(here)}: '
        f'pass mesh sizes whose product is {len(here)} or less{_virtual(here[0], self.devices)}'
      )
    if self.devices < len(here) and here[0].platform != 'cpu':
      logging.warning(
        '%d of %d devices stay idle: pass --mesh.data=%d to use them all',
        len(here) - self.devices,
        len(here),
        self.data * (len(here) // self.devices),
      )
    return self.over(here[: self.devices])

  def over(self, devices: Sequence[Any]) -> jax.sharding.Mesh:
    """A mesh over exactly these devices, those of one host next to each other."""
    if len(devices) > 1 and devices[0].platform == 'cpu':
      _keep_no_programs()
    grid = np.asarray(devices).reshape([self.sizes[axis] for axis in QUIETEST_FIRST])
    grid = grid.transpose([QUIETEST_FIRST.index(axis) for axis in AXES])
    return jax.sharding.Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))

  def abstract(self) -> AbstractMesh:
    """The same mesh without devices, for tracing at a size that no machine here has."""
    return AbstractMesh(tuple(self.sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES))

  def __str__(self) -> str:
    used = [f'{axis}={size}' for axis, size in self.sizes.items() if size > 1]
    return ' x '.join(used) or 'of one device'


def by_machine(devices: Sequence[Any], machines: Sequence[int]) -> list[Any]:
  """Devices with those of one machine next to each other, in whatever order its processes came.

  Open MPI with `--map-by node` and Slurm with `--distribution=cyclic` deal processes out in turn.

  Args:
    machines: of every process, see `hosts.machines`.
  """
  return sorted(devices, key=lambda one: (machines[one.process_index], one.process_index))


def _keep_no_programs() -> None:
  """Has JAX read no more programs back from its cache of compiled ones.

  For several CPU devices one that was read back runs its collectives in another order than one just
  compiled (jaxlib 0.10.2): processes end on messages of a wrong size, threads wait for each other.
  """
  if jax.config.jax_enable_compilation_cache:  # type: ignore[attr-defined]
    jax.config.update('jax_enable_compilation_cache', False)
    compilation_cache.reset_cache()  # JAX looks at the setting once


def _virtual(device: Any, count: int) -> str:
  """How to have more devices where a CPU is all there is."""
  if device.platform != 'cpu':
    return ''
  return f', or set XLA_FLAGS=--xla_force_host_platform_device_count={count} to split this CPU'
