"""`bench_growth`: how time and memory of a training step, and compiling it, go with the size of the work.

Each point is a process of its own, which compiles one step and takes it. Along a line one thing grows:
the width of the model (parameters), the length of a row (at the same tokens a step for short rows, one
row from there on), the devices (virtual ones, which share this machine's cores, so that time should
stay level while memory a device falls) and the layers (scanned, or listed). Slopes are exponents: 1 is
proportional, 2 quadratic, 0 level.
"""

import math
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.bench import contest
from lmjax.bench.side import Turn
from lmjax.core import processor
from lmjax.core.config import leaf
from lmjax.core.errors import UserError
from lmjax.core.task import Report, Task
from lmjax.core.types import Batch
from lmjax.models.transformer import Decoder
from lmjax.objectives.language import Language
from lmjax.optim.optimizer import AdamW
from lmjax.parallel.mesh import Mesh
from lmjax.train.state import batch_sharding, make_state
from lmjax.train.step import make_step

_BASE = {'width': 128, 'layers': 2, 'rows': 8, 'length': 256, 'devices': 1, 'remat': 'none'}
_TOKENS = 2048


class Line(NamedTuple):
  """Points along which `grows` does, each a change of `_BASE`; what is measured, and its axis."""

  grows: str
  points: Sequence[dict[str, Any]]
  measured: Sequence[str]


def lines(longest: int, most_layers: int) -> dict[str, Line]:
  """All lines, to rows of `longest` tokens and models of `most_layers` layers."""
  lengths = [2**power for power in range(8, 20) if 2**power <= longest]
  rows = [{'length': n, 'rows': max(1, _TOKENS // n), 'remat': 'full'} for n in lengths]
  layers = [2**power for power in range(1, 10) if 2**power <= most_layers]
  scanned = [{'layers': n, 'width': 64, 'layout': 'scan'} for n in layers]
  listed = [{**point, 'layout': 'list'} for point in scanned if point['layers'] <= 16]
  sharded = [{'devices': n, 'width': 256} for n in (1, 2, 4, 8)]
  step = ('step_seconds', 'step_bytes')
  return {
    'parameters': Line('parameters', [{'width': w} for w in (64, 128, 256, 512, 768)], step),
    'length': Line('length', rows, step),
    'devices': Line('devices', sharded, step),
    'layers, scanned': Line('layers', scanned, ('compile_seconds',)),
    'layers, listed': Line('layers', listed, ('compile_seconds',)),
  }


class BenchGrowth(Task):
  """Measures how a training step grows with parameters, length, devices and layers; draws the lines."""

  longest: int = leaf(32_768, 'Tokens of the longest row.', low=512)
  most_layers: int = leaf(64, 'Layers of the deepest model.', low=4)

  def run(self, workdir: Path) -> Report:
    drawn, slopes = {}, {}
    for name, line in lines(self.longest, self.most_layers).items():
      print(name, flush=True)
      points = [_measure(point, workdir / 'stderr.log') for point in line.points]
      drawn[name] = points
      xs = [point[line.grows] for point in points]
      for what in line.measured:
        slopes[f'{name}: {what}'] = slope(xs, [point[what] for point in points])
    draw(drawn, lines(self.longest, self.most_layers), workdir / 'growth.png')
    for name, value in slopes.items():
      print(f'{name:34} grows with exponent {value:.2f}')
    print(f'drawn in {workdir / "growth.png"}')
    return {'slopes': slopes, 'lines': drawn, 'cores': processor.cores()}


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
  """The exponent of the power law through the upper half of the points, by least squares of logs."""
  upper = len(xs) // 2
  return float(np.polyfit(np.log(xs[upper:]), np.log(ys[upper:]), 1)[0])


def point_turn(settings: dict[str, Any]) -> Turn:
  """Compiles the step of a point, then takes it for about two seconds."""
  model = Decoder(
    vocab=4096,
    width=settings['width'],
    layers=settings['layers'],
    heads=settings['width'] // 64,
    kv_heads=settings['width'] // 64,
    mlp=4 * settings['width'],
    layout=settings.get('layout', 'scan'),
    remat=settings['remat'],
  )
  mesh = Mesh(fsdp=settings['devices']).build()
  tx = AdamW().build(model.dims(), 1000)
  step = make_step(Language(chunk=64), model, tx, 1)
  state = make_state(model, tx, 0, mesh)
  shape = (settings['rows'], settings['length'])
  whole = jnp.ones(shape, jnp.int32)
  places = jnp.broadcast_to(jnp.arange(shape[1]), shape)
  batch = Batch(whole, whole, jnp.ones(shape), whole, places)
  batch = jax.device_put(batch, batch_sharding(mesh))
  layouts = (jax.tree.map(lambda x: x.sharding, state), None)
  with jax.set_mesh(mesh):
    start = time.perf_counter()
    lowered = jax.jit(step, donate_argnums=0, out_shardings=layouts).lower(state, batch)
    compiled = lowered.compile()
    compiling = time.perf_counter() - start
  memory: Any = compiled.memory_analysis()

  def take(count: int) -> float:
    nonlocal state
    start = time.perf_counter()
    for _ in range(count):
      state, _ = compiled(state, batch)
    jax.block_until_ready(state)
    return (time.perf_counter() - start) / count

  def turn() -> dict[str, Any]:
    first = take(1)
    return {
      'parameters': sum(math.prod(x.shape) for x in jax.tree.leaves(state.params)),
      'step_seconds': take(max(1, round(2.0 / first))),
      'compile_seconds': compiling,
      'step_bytes': memory.argument_size_in_bytes + memory.temp_size_in_bytes,
      'peak_rss_gib': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }

  return turn


def _measure(point: dict[str, Any], log: Path) -> dict[str, Any]:
  """The settings and figures of one point."""
  settings = {**_BASE, **point}
  flags = f'--xla_force_host_platform_device_count={settings["devices"]}'
  name = ', '.join(f'{key} {value}' for key, value in point.items())
  side = contest.ours(name, f'{__name__}:point_turn', settings, XLA_FLAGS=flags)
  return {**settings, **contest.compete([side], 1, log).turns[name][0].figures}


def draw(drawn: dict[str, Any], known: dict[str, Line], path: Path) -> None:
  """Every line on axes of logarithms, a panel for each thing that grows."""
  try:
    from matplotlib.figure import Figure
  except ModuleNotFoundError:
    raise UserError("the lines are drawn with matplotlib: pip install 'lmjax[bench]'") from None
  panels = [('parameters', 'step_seconds', 's a step'), ('parameters', 'step_bytes', 'GB')]
  panels += [('length', 'step_seconds', 's a step'), ('length', 'step_bytes', 'GB')]
  panels += [('devices', 'step_bytes', 'GB a device'), ('layers', 'compile_seconds', 's compiling')]
  figure = Figure(figsize=(12, 7), layout='constrained')
  for axes, (grows, what, unit) in zip(figure.subplots(2, 3).flat, panels, strict=True):
    for name, line in known.items():
      if line.grows == grows and what in line.measured:
        xs, ys = ([point[key] for point in drawn[name]] for key in (grows, what))
        label = f'{name}: exponent {slope(xs, ys):.2f}'
        scale = 1e9 if what == 'step_bytes' else 1.0
        axes.loglog(xs, [y / scale for y in ys], 'o-', label=label)
    axes.set(xlabel=grows, ylabel=unit)
    axes.grid(visible=True, which='both', alpha=0.2)
    axes.legend()
  figure.savefig(path, dpi=110)
