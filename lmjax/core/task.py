"""What a task is: a frozen configuration with `run(workdir)`, and the report that every task leaves.

Knows nothing about JAX beyond naming the device in the report.
"""

import contextlib
import datetime
import fcntl
import functools
import importlib.metadata
import json
import logging
import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, ClassVar

from lmjax.core import processor
from lmjax.core.config import Config, changed_identity, to_json, to_text
from lmjax.core.errors import UserError
from lmjax.core.storage import mirrored

SCHEMA = 1
EXIT_AGAIN = 75  # EX_TEMPFAIL: what could be is saved, launch files start the job again on it

Report = dict[str, Any]


class Task(Config):
  """Something a user starts with `--experiment=NAME`. Subclasses implement `run`."""

  # A task that resumes keeps its workdir (runs/NAME) and refuses a changed identity leaf there;
  # any other writes to a new numbered folder each time.
  resumes: ClassVar[bool] = False

  def run(self, workdir: Path) -> Report:
    """Does the work in `workdir` and returns what its report holds beside the common keys."""
    raise NotImplementedError

  def connect(self) -> int:
    """Joins the other processes of a run; returns which of them this is, 0 where it writes."""
    return 0

  def leave(self, error: BaseException | None) -> None:
    """Ends what `connect` began; where there are other processes, `error` ends them and this one."""


def default_workdir(task: Task, name: str) -> Path:
  """`runs/NAME` for a task that resumes, else a new folder `runs/NAME-0001`, the next number free."""
  base = _named_workdir(name)
  if task.resumes:
    return base
  numbers = [path.name.removeprefix(f'{base.name}-') for path in base.parent.glob(f'{base.name}-*')]
  number = max((int(text) for text in numbers if text.isdecimal()), default=0)
  while True:
    number += 1
    folder = base.with_name(f'{base.name}-{number:04d}')
    try:
      folder.mkdir(parents=True)
    except FileExistsError:
      continue  # another process was quicker
    except OSError as error:
      raise _unwritable(folder, error) from None
    return folder


def _named_workdir(name: str) -> Path:
  return Path('runs') / name.rpartition(':')[2]


def save_config(task: Task, name: str, workdir: Path) -> None:
  """Writes `workdir/config.json`; refuses a workdir that another configuration began."""
  path = workdir / 'config.json'
  try:
    old = json.loads(path.read_text(encoding='utf-8')) if path.exists() else None
    if old is not None:
      _check_same(task, name, workdir, old['experiment'], old['config'])
    write_json(path, {'schema': SCHEMA, 'experiment': name, 'config': to_json(task)})
  except OSError as error:
    raise _unwritable(workdir, error) from None
  except (KeyError, TypeError, json.JSONDecodeError):
    raise UserError(f'{path} is damaged: pass another --workdir') from None


def _check_same(
  task: Task, name: str, workdir: Path, experiment: str, saved: Mapping[str, Any]
) -> None:
  """UserError when `task` is not what `workdir` was begun with."""
  if experiment != name:
    raise UserError(f'{workdir} holds a run of {experiment}, not of {name}: pass another --workdir')
  changed = changed_identity(saved, task) if task.resumes else []
  if changed:
    text = lambda value: to_text(value) or "''"
    listed = '; '.join(f'{key} was {text(old)}, now {text(new)}' for key, old, new in changed)
    raise UserError(
      f'{workdir} was begun with other settings ({listed}): '
      'pass the old values to continue it, or another --workdir to begin anew'
    )


def _unwritable(folder: Path, error: OSError, flag: str = 'workdir') -> UserError:
  return UserError(
    f'{folder} cannot be written ({error.strerror}): pass --{flag}=FOLDER, one that can'
  )


def hold_workdir(workdir: Path, flag: str = 'workdir') -> IO[str]:
  """Keeps other processes out of `workdir` until what is returned is closed, or this one dies.

  Raises:
    UserError: another process holds it, or it cannot be written.
  """
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    file = (workdir / 'lock').open('a+')
  except OSError as error:
    raise _unwritable(workdir, error, flag) from None
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    file.seek(0)
    holder = file.read().strip()
    file.close()
    raise UserError(
      f'{workdir} is in use by another process{holder and f" ({holder})"}: '
      f'wait until it ends or stop it, or pass another --{flag}'
    ) from None
  except OSError as error:  # some network file systems have no locks
    logging.getLogger(__name__).warning('%s cannot be locked: %s', workdir, error.strerror)
  file.truncate(0)
  file.write(f'process {os.getpid()} of {platform.node()}')
  file.flush()
  return file


@contextlib.contextmanager
def opened(task: Task, name: str, workdir: Path | None) -> Iterator[tuple[Path, bool]]:
  """The workdir of a run for the block, locked and with its config.json, and whether to write there.

  Of the processes of a run, connected for the block, process 0 alone does so. What it finds wrong
  ends the others at their first exchange.
  """
  process = task.connect()
  try:
    if process > 0:
      yield workdir or _named_workdir(name), False
    else:
      workdir = workdir or default_workdir(task, name)
      with hold_workdir(workdir), mirrored(workdir):
        save_config(task, name, workdir)
        yield workdir, True
  except BaseException as error:
    task.leave(error)
    raise
  task.leave(None)


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
  full = _finite({**common, **report})
  write_json(workdir / 'report.json', full)
  return full


def _finite(value: Any) -> Any:
  """`value` with null for each number that JSON has no word for."""
  if isinstance(value, Mapping):
    return {key: _finite(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [_finite(item) for item in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: Any) -> None:
  """Writes `value` so that a reader sees the old file or the new one, never half of one."""
  text = json.dumps(value, indent=2, ensure_ascii=False) + '\n'
  path.parent.mkdir(parents=True, exist_ok=True)
  draft = path.with_name(f'.{path.name}.{os.getpid()}')
  # Of bytes on the command line that are no UTF-8, Python makes characters that have no UTF-8.
  draft.write_bytes(text.encode(errors='backslashreplace'))
  os.replace(draft, path)


@functools.cache
def device() -> str:
  """The accelerator in words: `8 x NVIDIA H100 80GB HBM3`, `1 x cpu (AMD EPYC, 2 cores)`."""
  import jax

  devices = jax.devices()
  kind = devices[0].device_kind
  if devices[0].platform == 'cpu':
    kind = f'cpu ({processor.name()}, {processor.cores()} cores)'
  return f'{len(devices)} x {kind}'


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
  """The commit that lmjax runs from; None of an installed copy, also inside someone's repository."""
  here = Path(__file__).resolve().parent
  command = ['git', '-C', str(here), 'rev-parse', '--show-prefix', 'HEAD']
  try:
    found = subprocess.run(command, capture_output=True, text=True, timeout=10)
  except (OSError, subprocess.TimeoutExpired):
    return None
  prefix, _, commit = found.stdout.partition('\n')
  ours = found.returncode == 0 and prefix == 'lmjax/core/'
  return commit.strip() if ours else None
