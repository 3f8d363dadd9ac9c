"""The task that says what a job on GPUs that are not here will need, before anyone buys or books them."""

import concurrent.futures
import itertools
import shlex
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lmjax.core import command_line, config, registry
from lmjax.core.clock import duration_text
from lmjax.core.config import leaf, part
from lmjax.core.errors import UserError
from lmjax.core.task import Report, Task
from lmjax.parallel import topology
from lmjax.parallel.mesh import AXES, Mesh
from lmjax.plan import cards, figures, search
from lmjax.plan.cards import Card
from lmjax.plan.compile import compile_step
from lmjax.plan.estimate import Estimate, candidate_row, estimate, way
from lmjax.plan.explain import explain
from lmjax.plan.failures import Failures
from lmjax.plan.money import Money
from lmjax.plan.page import page
from lmjax.plan.report import PAGE, terminal
from lmjax.train.pretrain import Pretrain

_AT_ONCE = 2  # compilers at a time: each takes a core and up to 2 GiB
_CHANGES = 3  # that make a plan fit are looked for
_REFUSALS = 4  # that a search goes on after
_TRIES = 8  # and at most so many are compiled


class Plan(Task):
  """Compiles the train step of an experiment for GPUs that are not here and says what it will cost."""

  target: str = leaf('posts_dense_8b', 'Experiment to plan; also package.module:function.')
  target_flags: str = leaf('', "Its flags, as on its command line: '--batch=2560 --mesh.fsdp=16'.")
  gpus: int | None = leaf(
    None, "Accelerators in all: mesh.data of the target is set so; none: the target's mesh.", low=1
  )
  accelerator: str = leaf(
    'h100',
    'a100, h100, h200, b200, gb200, cpu (this machine, measured), or your own card as '
    'package.module:NAME.',
  )
  search: bool = leaf(True, 'Look for a better mesh, microbatch and remat; false: what is asked.')
  candidates: int = leaf(4, 'Ways that the search compiles, some 10 to 60 s each.', low=1, high=64)
  tokens: float | None = leaf(
    None, "Tokens to train on, for days and dollars; none: the target's steps.", above=0
  )
  money: Money = part(Money(), 'What things cost.')
  failures: Failures = part(Failures(), 'What goes wrong, and what that costs.')

  def run(self, workdir: Path) -> Report:
    """Prints the plan; it is also in report.json, and with charts in plan.html."""
    card = cards.find(self.accelerator)
    study = Study(self.target, card, self.accelerator, workdir)
    base, asked, notes = self._asked()
    found = study.compile([asked] if asked else [])
    if self.search:
      found += self._searched(study, base, asked, card)
    gpus = self.gpus or (asked or base).mesh.devices
    if not found:
      raise UserError(_why_nothing(self.target, gpus, study.refused))
    best = _best(found, gpus)
    changes = [] if best.fits else study.shrink(best.task)
    report = self._report(best, found, changes, base, [*notes, *study.notes(), *_lacking(card)])
    (workdir / PAGE).write_text(page(report), encoding='utf-8')
    print(terminal(report, workdir), flush=True)
    return report

  def _asked(self) -> tuple[Pretrain, Pretrain | None, list[str]]:
    """The target on one device; over its mesh or `gpus`, None if that cannot be; and what to say."""
    target = self._find_target()
    # On one device, as a batch that is for `gpus` need not divide over the target's own mesh.
    alone = [f'--mesh.{axis}=1' for axis in AXES]
    try:
      words = shlex.split(self.target_flags)
      command = command_line.parse(['plan', f'--experiment={self.target}', *alone, *words])
    except (UserError, ValueError) as error:
      raise UserError(f'--target_flags: {error}') from None
    files = any(word.startswith(('--flagfile', '--config')) for word in words)
    if files or isinstance(command, str) or command.experiment != self.target or command.workdir:
      raise UserError(
        f'--target_flags={self.target_flags}: pass settings of {self.target} only, such as '
        "'--batch=512 --mesh.fsdp=16'"
      )
    base: Any = command.task
    given = {axis for axis in AXES if any(word.startswith(f'--mesh.{axis}') for word in words)}
    if 'data' in given and self.gpus is not None and base.mesh.devices != self.gpus:
      raise UserError(
        f'--gpus={self.gpus} sets mesh.data of the target, --target_flags give another: leave one out'
      )
    sizes = {
      axis: size if axis in given else target.mesh.sizes[axis]
      for axis, size in base.mesh.sizes.items()
    }
    notes = [] if self.gpus is None else figures.awkward(self.gpus)
    try:
      mesh = Mesh(**sizes) if self.gpus is None else _filled(Mesh(**sizes), self.gpus)
      return base, _over(base, mesh), notes
    except UserError as error:
      if not self.search or self.gpus is None:
        raise
      return base, None, [f'over the mesh of the target it cannot run there: {error}', *notes]

  def _find_target(self) -> Pretrain:
    target = registry.find(self.target)
    if not isinstance(target, Pretrain):
      raise UserError(
        f'--target={self.target} is not a training run: pass one, such as posts_dense_8b'
      )
    return target

  def _searched(
    self, study: 'Study', base: Pretrain, asked: Pretrain | None, card: Card
  ) -> list[Estimate]:
    """The ways that look best by formula, compiled; also on the round number of GPUs nearby."""
    gpus = self.gpus or (asked or base).mesh.devices
    print(f'looking for the best way over {gpus:,} GPUs ...', flush=True)
    counts = {gpus: self.candidates}
    if (rounder := figures.rounder(gpus)) is not None:
      counts[rounder] = 1
    found: list[Estimate] = []
    for count, most in counts.items():
      ways = (task for task in search.promising(base, count, card) if task != asked)
      found += study.compile_some(ways, most)
    return found

  def _report(
    self,
    best: Estimate,
    found: Sequence[Estimate],
    changes: Sequence[Estimate],
    base: Pretrain,
    notes: list[str],
  ) -> Report:
    plain = self._find_target()
    front = search.pareto(found)
    rows = [
      candidate_row(one)
      | {'best': one is best, 'pareto': one in front, 'flags': search.flags(one.task, plain)}
      for one in found
    ]
    mends = [
      {
        'flags': search.flags(one.task, plain),
        'peak_gib': one.peak_gib,
        'fits': one.fits,
        'tokens_per_second': one.tokens_per_second,
        'label': 'compiled',
      }
      for one in changes
    ]
    tokens = self.tokens or float(base.steps * base.batch * base.length)
    return {
      'target': self.target,
      'accelerator': self.accelerator,
      'gpus': best.gpus,
      **figures.summary(best, tokens, self.money, self.failures),
      'candidates': rows,
      'changes': mends,
      'findings': [one._asdict() for one in explain(best)],
      'notes': notes,
    }


def golden(report: Report) -> Report:
  """Of a report, what the compiler decides and the model's constants do not."""
  return {
    'mesh': report['mesh'],
    'peak_gib': report['peak_gib'],
    'pflop': sum(report['flops'].values()),
    'wire_gib': {axis: gib for axis, gib in report['wire_gib'].items() if gib > 0.01},
  }


def _lacking(card: Card) -> list[str]:
  """What cannot be compiled here."""
  if card.gpu is None or topology.is_installed('nvidia.cudnn'):
    return []
  return [
    'cuDNN is not installed here, so what calls it, such as its fused attention, cannot be compiled: '
    'pip install nvidia-cudnn-cu12 (2.1 GB); attention of this step is a kernel that comes with JAX'
  ]


class Study:
  """Compiles ways of running a target, each in a process and a folder of its own."""

  def __init__(self, target: str, card: Card, accelerator: str, workdir: Path) -> None:
    self.target, self.card, self.accelerator = target, card, accelerator
    self.folder = workdir / 'programs'
    self.refused: list[tuple[Pretrain, str]] = []
    self._count = 0

  def compile(self, tasks: Sequence[Pretrain]) -> list[Estimate]:
    """Estimates of the tasks that the compiler takes, in order; the others are in `refused`."""
    started, found = time.monotonic(), []
    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
      for done, result in enumerate(pool.map(self._try, tasks), 1):
        found += [result] if result else []
        left = (time.monotonic() - started) / done * (len(tasks) - done)
        eta = f', ETA {duration_text(left)}' if done < len(tasks) else ''
        print(f'compiled {done} of {len(tasks)}{eta}', flush=True)
    return found

  def compile_some(self, tasks: Iterator[Pretrain], most: int) -> list[Estimate]:
    """Estimates of the first `most` of `tasks` that the compiler takes."""
    found: list[Estimate] = []
    tries = itertools.islice(tasks, _REFUSALS + most)
    while len(found) < most and (some := list(itertools.islice(tries, most - len(found)))):
      found += self.compile(some)
    return found

  def shrink(self, task: Pretrain) -> list[Estimate]:
    """The cheapest changes of a task that fit, compiled: up to three."""
    print('it does not fit: looking for the cheapest changes ...', flush=True)
    fitting: list[Estimate] = []
    options = search.changes(task, self.card)[:_TRIES]
    while options and len(fitting) < _CHANGES:
      count = min(_AT_ONCE, _CHANGES - len(fitting))
      some, options = options[:count], options[count:]
      fitting += [one for one in self.compile(some) if one.fits]
    return sorted(fitting, key=lambda one: -one.tokens_per_second)[:_CHANGES]

  def notes(self) -> list[str]:
    return [f'{_way_text(task)} was left out: {why}' for task, why in self.refused]

  def _try(self, task: Pretrain) -> Estimate | None:
    self._count += 1
    folder = self.folder / f'{self._count:02d}'
    folder.mkdir(parents=True, exist_ok=True)
    print(f'compiling {_way_text(task)} ...', flush=True)
    try:
      program = compile_step(self.target, task, self.accelerator, folder)
      return estimate(task, self.card, program)
    except (UserError, ValueError) as error:  # ValueError: something in it cannot be read
      self.refused.append((task, str(error)))
      return None


def _filled(mesh: Mesh, gpus: int) -> Mesh:
  """`mesh` of `gpus` devices: with as many replicas as its other axes leave room for."""
  others = mesh.devices // mesh.data
  if gpus % others:
    near = [n for n in (gpus // others * others, -(-gpus // others) * others) if n]
    raise UserError(
      f'gpus={gpus} is not a multiple of the {others} devices of a replica of mesh {mesh}: pass '
      f'{" or ".join(map(str, near))}, or other axes in --target_flags'
    )
  return Mesh(**{**mesh.sizes, 'data': gpus // others})


def _over(task: Pretrain, mesh: Mesh) -> Pretrain:
  return config.override(task, {f'mesh.{axis}': size for axis, size in mesh.sizes.items()})


def _best(found: Iterable[Estimate], gpus: int) -> Estimate:
  """The fastest that fits on the `gpus` asked for; where none does, the smallest there."""
  ranked = sorted(
    found,
    key=lambda one: (
      one.gpus != gpus,
      not one.fits,
      -one.tokens_per_second if one.fits else one.program.peak_bytes,
    ),
  )
  return ranked[0]


def _why_nothing(target: str, gpus: int, refused: Sequence[tuple[Pretrain, str]]) -> str:
  if refused:
    return f'{target} cannot be compiled for {gpus:,} GPUs: {refused[0][1]}'
  return (
    f'no mesh of {gpus:,} GPUs divides batch and model of {target}: pass another batch in '
    f"--target_flags, such as '--batch={gpus}', or another --gpus"
  )


def _way_text(task: Pretrain) -> str:
  done: dict[str, Any] = way(task)
  return (
    f'{task.mesh} on {done["gpus"]:,}, microbatch {done["microbatch"]} x {done["accumulate"]}, '
    f'remat {done["remat"]}, moments {task.optimizer.moment_dtype} on {task.optimizer.memory}'
  )
