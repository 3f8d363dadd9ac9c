"""What a task is: a frozen configuration with `run(workdir)`, and the report that every task leaves.

Knows nothing about JAX beyond naming the device in the report.
"""

import datetime
import fcntl
import functools
import importlib.metadata
import json
import logging
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import IO, Any, ClassVar

from lmjax.core.config import Config, changed_identity, to_json
from lmjax.core.errors import UserError

SCHEMA = 1

Report = dict[str, Any]


class Task(Config):
  """Something a user starts with `--experiment=NAME`. Subclasses implement `run`."""

  # A task that resumes keeps its workdir (runs/NAME) and refuses a changed identity leaf there;
  # any other writes to a new numbered folder each time.
  resumes: ClassVar[bool] = False

  def run(self, workdir: Path) -> Report:
    """Does the work in `workdir` and returns what its report holds beside the common keys."""
    raise NotImplementedError


def default_workdir(task: Task, name: str) -> Path:
  """`runs/NAME` for a task that resumes, else the next free `runs/NAME-0001`."""
  base = Path('runs') / name.rpartition(':')[2]
  if task.resumes:
    return base
  taken = [int(path.name.rpartition('-')[2]) for path in base.parent.glob(f'{base.name}-[0-9]*')]
  return base.with_name(f'{base.name}-{max(taken, default=0) + 1:04d}')


def save_config(task: Task, name: str, workdir: Path) -> None:
  """Writes `workdir/config.json`; refuses a workdir that another configuration began."""
  path = workdir / 'config.json'
  if task.resumes and path.exists():
    old = json.loads(path.read_text())
    if old['experiment'] != name:
      raise UserError(
        f'{workdir} holds a run of {old["experiment"]}, not of {name}: pass another --workdir'
      )
    changed = changed_identity(old['config'], task)
    if changed:
      listed = '; '.join(f'{key} was {before!r}, now {after!r}' for key, before, after in changed)
      raise UserError(
        f'{workdir} was begun with other settings ({listed}): '
        'pass the old values to continue it, or another --workdir to begin anew'
      )
  write_json(path, {'schema': SCHEMA, 'experiment': name, 'config': to_json(task)})


def hold_workdir(workdir: Path) -> IO[str]:
  """Keeps other processes out of `workdir` until what is returned is closed, or this one dies.

  Raises:
    UserError: another process holds it.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  file = (workdir / 'lock').open('a+')
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    file.seek(0)
    holder = file.read().strip()
    file.close()
    raise UserError(
      f'{workdir} is in use by another process{holder and f" ({holder})"}: '
      'wait until it ends or stop it, or pass another --workdir'
    ) from None
  except OSError as error:  # some network file systems have no locks
    logging.getLogger(__name__).warning('%s cannot be locked: %s', workdir, error.strerror)
  file.truncate(0)
  file.write(f'process {os.getpid()} of {platform.node()}')
  file.flush()
  return file


def write_report(workdir: Path, name: str, started: datetime.datetime, report: Report) -> Report:
  """Writes `workdir/report.json`: `report` under the keys that every report holds."""
  now = datetime.datetime.now(datetime.UTC)
  common = {
    'schema': SCHEMA,
    'experiment': name,
    'commit': _commit(),
    'versions': _versions(),
    'device': device(),
    'argv': sys.argv,
    'started': started.isoformat(timespec='seconds'),
    'seconds': (now - started).total_seconds(),
  }
  full = {**common, **report}
  write_json(workdir / 'report.json', full)
  return full


def write_json(path: Path, value: Any) -> None:
  """Writes `value` so that a reader sees the old file or the new one, never half of one."""
  path.parent.mkdir(parents=True, exist_ok=True)
  draft = path.with_name(f'.{path.name}.{os.getpid()}')
  draft.write_text(json.dumps(value, indent=2, ensure_ascii=False) + '\n', encoding='utf-8')
  os.replace(draft, path)


@functools.cache
def device() -> str:
  """The accelerator in words: `8 x NVIDIA H100 80GB HBM3`, `1 x cpu (AMD EPYC, 2 cores)`."""
  import jax

  devices = jax.devices()
  kind = devices[0].device_kind
  if devices[0].platform == 'cpu':
    kind = f'cpu ({_processor()}, {len(os.sched_getaffinity(0))} cores)'
  return f'{len(devices)} x {kind}'


def _processor() -> str:
  try:
    lines = Path('/proc/cpuinfo').read_text().split('\n')
  except OSError:
    return platform.processor() or platform.machine()
  names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
  return names[0] if names else platform.machine()


def _versions() -> dict[str, str]:
  packages = ('lmjax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'tokenizers')
  found = {'python': platform.python_version()}
  for package in packages:
    try:
      found[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def _commit() -> str | None:
  here = Path(__file__).resolve().parent
  command = ['git', '-C', str(here), 'rev-parse', 'HEAD']
  try:
    found = subprocess.run(command, capture_output=True, text=True, timeout=10)
  except (OSError, subprocess.TimeoutExpired):
    return None
  return found.stdout.strip() if found.returncode == 0 else None
