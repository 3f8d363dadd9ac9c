"""A run's own train step, compiled for GPUs that are not here, in a process of its own.

    python -m lmjax.plan.compile FOLDER    reads FOLDER/request.json, writes program.hlo, program.json

What XLA prints while it compiles is only on the error stream of that process, so it is kept beside
the program: an involuntary full rematerialization is told nowhere else.
"""

import json
import os
import resource
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lmjax.core import config, registry
from lmjax.core.errors import UserError
from lmjax.core.task import write_json

_TIMEOUT = 1800.0  # seconds for one compilation
_REQUEST, _PROGRAM, _TEXT, _SAID = 'request.json', 'program.json', 'program.hlo', 'stderr.txt'


class Program(NamedTuple):
  """A compiled train step.

  Attributes:
    text: the optimised, scheduled module.
    warnings: lines that XLA printed about how it partitions.
    mesh: size of each axis.
    places: number of the device at each place of the mesh; devices of a host follow each other.
    argument_bytes, output_bytes, alias_bytes, temporary_bytes, peak_bytes: of one device; alias is
      what outputs take over from arguments (donation).
    seconds: that tracing, lowering and compiling took.
    resident_bytes: of the process that did it, at most.
  """

  text: str
  warnings: list[str]
  mesh: dict[str, int]
  places: list[int]
  argument_bytes: int
  output_bytes: int
  alias_bytes: int
  temporary_bytes: int
  peak_bytes: int
  seconds: float
  resident_bytes: int


def compile_step(experiment: str, task: config.Config, accelerator: str, folder: Path) -> Program:
  """Compiles the train step of `task` for the devices of its mesh; files go to `folder`.

  Args:
    experiment: what `task` was made from, by which the process that compiles finds it.
    accelerator: what `cards.find` takes.

  Raises:
    UserError: the task cannot be compiled so, in the words of the process that tried.
  """
  request = {'experiment': experiment, 'config': config.to_json(task), 'accelerator': accelerator}
  write_json(folder / _REQUEST, request)
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
  environment.pop('XLA_FLAGS', None)  # may split the CPU, and have the compiler say other things
  with (folder / _SAID).open('wb') as said:
    try:
      ended = subprocess.run(
        [sys.executable, '-m', 'lmjax.plan.compile', str(folder)],
        stderr=said,
        env=environment,
        timeout=_TIMEOUT,
        check=False,
      )
    except subprocess.TimeoutExpired:
      raise UserError(f'the compiler took more than {_TIMEOUT:g} s: plan a smaller run') from None
  lines = (folder / _SAID).read_text(errors='replace').splitlines()
  if ended.returncode:
    told = [line.removeprefix('lmjax: ') for line in lines if line.startswith('lmjax: ')]
    killed = f'the compiler ended with {ended.returncode} (-9: out of memory?)'
    raise UserError(told[-1] if told else f'{killed}: see {folder / _SAID}')
  found = json.loads((folder / _PROGRAM).read_text())
  text = (folder / _TEXT).read_text()
  return Program(text=text, warnings=warnings_in(lines), **found)


def warnings_in(lines: Iterable[str]) -> list[str]:
  """Of what XLA printed, the lines about how it partitions."""
  return [line for line in lines if _is_warning(line)]


def _is_warning(line: str) -> bool:
  return 'rematerialization' in line or 'SPMD' in line


def _compile(request: dict[str, Any], folder: Path) -> None:
  """What the process of its own does."""
  from lmjax.train.pretrain import Pretrain

  task = config.from_json(registry.find(request['experiment']), request['config'])
  assert isinstance(task, Pretrain)
  found = compile_here(task, request['accelerator'])._asdict()
  (folder / _TEXT).write_text(found.pop('text'))
  del found['warnings']  # this process cannot read what it prints
  write_json(folder / _PROGRAM, found)


def compile_here(task: Any, accelerator: str, **options: bool | str) -> Program:
  """The same in this process, without the warnings: XLA prints them on its error stream.

  `options` are the compiler's, beside those of the accelerator's preset.
  """
  from lmjax.parallel.topology import compile_there

  devices, preset = _devices(accelerator, task.mesh.devices)
  mesh = task.mesh.over(devices)
  started = time.monotonic()
  compiled = compile_there(_lower(task, mesh), {**preset, **options})
  seconds = time.monotonic() - started
  memory: Any = compiled.memory_analysis()
  return Program(
    text=compiled.as_text() or '',
    warnings=[],
    mesh=task.mesh.sizes,
    places=[device.id for device in mesh.devices.flat],
    argument_bytes=memory.argument_size_in_bytes,
    output_bytes=memory.output_size_in_bytes,
    alias_bytes=memory.alias_size_in_bytes,
    temporary_bytes=memory.temp_size_in_bytes,
    peak_bytes=_peak(memory, devices[0].platform),
    seconds=seconds,
    resident_bytes=1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
  )


def _peak(memory: Any, platform: str) -> int:
  """Bytes at the fullest; XLA:CPU does not say, there arguments and all temporaries."""
  if platform != 'cpu':
    return memory.peak_memory_in_bytes
  fresh = memory.output_size_in_bytes - memory.alias_size_in_bytes
  return memory.argument_size_in_bytes + memory.temp_size_in_bytes + fresh


def _devices(accelerator: str, count: int) -> tuple[Sequence[Any], Mapping[str, bool | str]]:
  """`count` devices of an accelerator to compile for, and the compiler options of its preset."""
  import jax

  from lmjax.parallel import topology
  from lmjax.parallel.accelerator import preset
  from lmjax.plan import cards

  if accelerator == 'cpu':  # before anything asks which devices there are
    jax.config.update('jax_num_cpu_devices', count)
    return jax.devices(), preset('cpu').compiler_options
  card = cards.find(accelerator)
  if card.gpu is None:
    raise UserError(f'--accelerator={accelerator} has no gpu: say what XLA is to be told of it')
  per_host = min(count, card.node)
  described = topology.describe(card.gpu, -(-count // per_host), per_host)
  return described.devices[:count], preset(card.gpu.name).compiler_options


def _lower(task: Any, mesh: Any) -> Any:
  """The jitted step of a task on abstract arrays, as `train.job` compiles it."""
  import jax
  import jax.numpy as jnp

  from lmjax.core.types import Batch
  from lmjax.train.state import abstract_state, batch_sharding
  from lmjax.train.step import make_step

  tokenizer_vocab = task.model.vocab or task.text.vocab
  model = task.model.with_vocab(tokenizer_vocab)
  tx = task.optimizer.build(model.dims(), task.steps)
  state = abstract_state(model, tx, mesh)
  layout = jax.tree.map(lambda x: x.sharding, state)
  array = lambda dtype: jax.ShapeDtypeStruct(
    (task.batch, task.length), dtype, sharding=batch_sharding(mesh)
  )
  whole: Any = array(jnp.int32)
  weights: Any = array(jnp.float32)
  batch = Batch(whole, whole, weights, whole, whole)
  step = make_step(task.objective, model, tx, task.accumulate)
  jitted = jax.jit(step, donate_argnums=0, out_shardings=(layout, None))
  with jax.set_mesh(mesh):  # only now: an array made under it would be put on a device that is not
    platform: str = mesh.devices.flat[0].platform
    lowered_for = 'cuda' if platform == 'gpu' else platform
    return jitted.trace(state, batch).lower(lowering_platforms=(lowered_for,))


def main(folder: Path) -> int:
  """Compiles what the request in `folder` asks for; returns the exit code."""
  try:
    _compile(json.loads((folder / _REQUEST).read_text()), folder)
  except UserError as error:
    print(f'lmjax: {error}', file=sys.stderr)
    return 2
  except Exception as error:
    traceback.print_exc()
    reason = str(error).split('\n')[0]
    print(f'lmjax: it cannot be compiled ({type(error).__name__}: {reason})', file=sys.stderr)
    return 1
  return 0


if __name__ == '__main__':
  sys.exit(main(Path(sys.argv[1])))
