"""The task that checks a machine or a cluster before a long run, and says what to mend.

Every process looks at its own machine (`machine`), all of them try what a run will do together
(`together`), each gets what all found, and functions from there to a verdict judge it.
"""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lmjax.core.assets import cache_folder
from lmjax.core.config import leaf, part
from lmjax.core.errors import UserError
from lmjax.core.task import Report, Task
from lmjax.parallel import hosts
from lmjax.parallel.hosts import Hosts
from lmjax.plan import chips, machine, together
from lmjax.plan.machine import GB

Found = dict[str, Any]  # what one process found

_DRIVER = {'12': 525, '13': 580}  # the oldest driver that CUDA of this number runs on
_WRONG = 0.02  # of the largest value; bf16 holds 8 bits
_SLOW = 0.85  # of the median of all devices
_GPU_SHM = GB  # NCCL keeps what the GPUs of a machine exchange there; Docker gives 64 MiB


class Check(NamedTuple):
  """One thing that was looked at; `fix` says what to do where it is not as it should be."""

  name: str
  ok: bool
  found: str
  expected: str
  fix: str = ''


class Doctor(Task):
  """Checks the machines that a run would be started on; exit code 1 where something is wrong."""

  hosts: Hosts = part(Hosts(), 'How the processes of one run find each other.', run=True)
  expected_devices: int | None = leaf(None, 'Accelerators in all; none: not checked.', low=1)
  expected_per_host: int | None = leaf(
    None, 'Accelerators of each machine; none: not checked.', low=1
  )
  folder: str = leaf(
    '', 'Folder that all machines must share, as a workdir is; empty: the workdir.'
  )
  disk_gb: float = leaf(10.0, 'Free disk that must be left in the folder, in GB.', low=0)
  memory_gb: float = leaf(2.0, 'Free memory that each machine must have, in GB.', low=0)
  clock_seconds: float = leaf(1.0, 'By how much clocks may differ, in seconds.', above=0)
  megabytes: float = leaf(16.0, 'Size of the all-reduce that is timed, in MB a device.', above=0)
  bandwidth_gb: float | None = leaf(
    None, 'Bandwidth that it must reach, in GB/s a device; none: only measured.', above=0
  )
  deadline: float = leaf(
    120.0, 'Seconds after which a check that does not end has failed.', above=0
  )

  def __post_init__(self) -> None:
    super().__post_init__()
    if '://' in self.folder:
      raise UserError(
        f'folder={self.folder}: only folders are checked here, no object stores: pass a folder'
      )

  def connect(self) -> int:
    # Without the settings: that the processes differ is for a check to say.
    return self.hosts.connect()

  def leave(self, error: BaseException | None) -> None:
    hosts.leave(error)
    if error is None:
      together.exit_where_stuck()

  def run(self, workdir: Path) -> Report:
    """Prints a line a check; the report holds them, and `ok`: whether all are."""
    chosen = self.folder or together.gather('workdir', str(workdir), self.deadline)[0]
    folder = Path(chosen).expanduser()
    found = {
      **machine.look(folder),
      'folder': together.visit(folder, 'folder', self.deadline),
      'cache': together.visit(cache_folder(), 'cache', self.deadline),
      'clock': together.read_clock(self.deadline),
      'chips': together.within(self.deadline, lambda: {'each': chips.look()}),
      'all_reduce': together.all_reduce(int(self.megabytes * 1e6), self.deadline),
    }
    # Twice as long: one whose all-reduce failed at once waits here for those where it hangs.
    checks = judge(self, together.gather('found', found, 2 * self.deadline))
    checks = [check._replace(fix='') if check.ok else check for check in checks]
    if hosts.is_leader():
      show(checks)
    return {'checks': [check._asdict() for check in checks], 'ok': all(c.ok for c in checks)}


def judge(task: Doctor, found: Sequence[Found]) -> list[Check]:
  """The verdicts on what all processes found, in process order."""
  return [
    *_devices(task, found),
    _accelerator(found),
    _names(found),
    _versions(found),
    *_nvidia(found),
    _clocks(task, found),
    *_shared(found),
    _room('disk', 'disk_free', task.disk_gb, found, 'delete what is not needed there'),
    _room('memory', 'memory_free', task.memory_gb, found, 'end what else runs there'),
    _shm(found),
    *_chips(found),
    *_network(task, found),
  ]


def show(checks: Sequence[Check]) -> None:
  """Prints a table of one line a check, and last what it comes to."""
  rows = [('check', 'verdict', 'found', 'expected', 'what to do')]
  rows += [(c.name, 'ok' if c.ok else 'WRONG', c.found, c.expected, c.fix) for c in checks]
  widths = [max(len(row[column]) for row in rows) for column in range(4)]
  for row in rows:
    print(
      '  '.join(
        [*(text.ljust(w) for text, w in zip(row[:4], widths, strict=True)), row[4]]
      ).rstrip()
    )
  wrong = [check.name for check in checks if not check.ok]
  print(f'wrong: {", ".join(wrong)}' if wrong else 'all is well', flush=True)


def _devices(task: Doctor, found: Sequence[Found]) -> list[Check]:
  per_host: dict[tuple[str, str], int] = {}
  for one in found:
    key = (one['host'], one['boot'])
    per_host[key] = per_host.get(key, 0) + one['local_devices']
  total, wanted = found[0]['devices'], task.expected_devices
  each = task.expected_per_host or max(per_host.values())
  odd = [f'{count} on {host}' for (host, _), count in per_host.items() if count != each]
  return [
    Check(
      'devices',
      total == (wanted or total),
      f'{total} x {found[0]["kind"]} in {_count(len(found), "process", "processes")}',
      'any' if wanted is None else str(wanted),
      'start a process for every GPU or every node that there should be, '
      f'or pass --expected_devices={total}',
    ),
    Check(
      'per host',
      not odd,
      _some(odd) or f'{each} on {_count(len(per_host), "host", "hosts")}',
      'the same on every host' if task.expected_per_host is None else str(each),
      'give each process one GPU or all of its node: see --ntasks-per-node in slurm.sbatch, '
      'nvidia.com/gpu in jobset.yaml, and CUDA_VISIBLE_DEVICES; or a GPU is broken: see nvidia-smi',
    ),
  ]


def _accelerator(found: Sequence[Found]) -> Check:
  kinds = [f'{one["platform"]}{" beside an NVIDIA driver" if _idle(one) else ""}' for one in found]
  return Check(
    'accelerator',
    len(set(kinds)) == 1 and not any(map(_idle, found)),
    _by_value(kinds),
    'the same in every process',
    "install lmjax with the extra cuda12 or cuda13 there (pip install 'lmjax[cuda12]'), "
    'and leave JAX_PLATFORMS unset',
  )


def _idle(one: Found) -> bool:
  """Whether there is an NVIDIA driver, and jax runs on the CPU all the same."""
  return one['driver'] is not None and one['platform'] == 'cpu'


def _names(found: Sequence[Found]) -> Check:
  boots: dict[str, set[str]] = {}
  for one in found:
    boots.setdefault(one['host'], set()).add(one['boot'])
  twice = [host for host, seen in boots.items() if len(seen) > 1]
  return Check(
    'host names',
    not twice,
    f'{twice[0]} on {len(boots[twice[0]])} machines' if twice else _some(list(boots)),
    'one name a machine',
    'give each machine a name of its own (hostnamectl set-hostname)',
  )


def _versions(found: Sequence[Found]) -> Check:
  packages = dict.fromkeys(name for one in found for name in one['versions'])
  seen = {name: [one['versions'].get(name, 'none') for one in found] for name in packages}
  odd = [f'{name} {_by_value(values)}' for name, values in seen.items() if len(set(values)) > 1]
  shown = [f'{name} {seen[name][0]}' for name in ('python', 'jax', 'jaxlib', 'lmjax')]
  return Check(
    'versions',
    not odd,
    '; '.join(odd) or ', '.join(shown),
    'the same in every process',
    'use one image, or one environment on a shared folder',
  )


def _nvidia(found: Sequence[Found]) -> list[Check]:
  """Driver and NCCL, where there are GPUs."""
  gpus = [one for one in found if one['platform'] == 'gpu']
  if not gpus:
    return []
  drivers = [one['driver'] or 'none' for one in gpus]
  nccls = [one['nccl'] or 'not of pip' for one in gpus]
  oldest = min(int(text.split('.')[0]) if text != 'none' else 0 for text in drivers)
  need = _DRIVER[max((one['cuda'] or '12') for one in gpus)]
  return [
    Check(
      'driver',
      oldest >= need,
      _by_value(drivers),
      f'{need} or later',
      "update NVIDIA's driver there, or install the extra cuda12",
    ),
    Check(
      'NCCL',
      len(set(nccls)) == 1,
      _by_value(nccls),
      'the same in every process',
      'use one image, or one environment on a shared folder',
    ),
  ]


def _clocks(task: Doctor, found: Sequence[Found]) -> Check:
  skews = [together.skew(found[0]['clock'], one['clock']) for one in found]
  worst, process = max((abs(seconds), index) for index, (seconds, _) in enumerate(skews))
  within = skews[process][1]
  return Check(
    'clocks',
    worst - within <= task.clock_seconds,
    f'process {process} is {worst:.3f} s off process 0, measured to {within:.3f} s',
    f'{task.clock_seconds} s or less',
    f'have chrony or ntpd set the clock of {found[process]["host"]}',
  )


def _shared(found: Sequence[Found]) -> list[Check]:
  """Whether all processes see one folder, and one cache of compiled programs."""
  path = found[0]['folder']['path']
  checks = [
    _visible('shared folder', 'folder', found, f'mount {path} on every machine, or pass --folder'),
    _visible(
      'compilation cache',
      'cache',
      found,
      'set LMJAX_CACHE to a folder that all machines share: else each compiles for itself at every start',
    ),
  ]
  locks = [one['folder']['lock'] for one in found]
  return [
    *checks,
    Check(
      'file locks',
      set(locks) == {'held'},
      _by_value(locks),
      'held',
      f'mount {path} with locks that all machines see (for NFS: no nolock, no local_lock), '
      'or take care that no two runs use one workdir',
    ),
  ]


def _visible(name: str, key: str, found: Sequence[Found], fix: str) -> Check:
  seen = [one[key]['seen'] for one in found]
  where = dict.fromkeys(one[key]['path'] for one in found)
  return Check(
    name,
    set(seen) == {'seen'},
    f'{", ".join(where)}: {_by_value(seen)}',
    'what process 0 writes is seen',
    fix,
  )


def _room(name: str, key: str, gigabytes: float, found: Sequence[Found], fix: str) -> Check:
  free = [one[key] for one in found if one[key] is not None]
  least = min(free, default=None)
  where = next((one['host'] for one in found if one[key] == least), '')
  return Check(
    name,
    least is None or least >= gigabytes * GB,
    'unknown' if least is None else f'{least / GB:.1f} GB free on {where}',
    f'{gigabytes:g} GB or more',
    fix,
  )


def _shm(found: Sequence[Found]) -> Check:
  sizes = [one['shm'] or 0 for one in found]
  gpus = any(one['platform'] == 'gpu' for one in found)
  return Check(
    '/dev/shm',
    not gpus or min(sizes) >= _GPU_SHM,
    f'{min(sizes) / GB:.2f} GB',
    f'{_GPU_SHM / GB:g} GB or more' if gpus else 'any without GPUs',
    'start the container with --shm-size=32g, or mount an emptyDir of medium Memory there',
  )


def _chips(found: Sequence[Found]) -> list[Check]:
  """Whether every device computes what it should, and as fast as the others."""
  failed = [one['chips'].get('failed') for one in found]
  if any(failed):
    told = _by_value([text or 'done' for text in failed])
    return [
      Check('arithmetic', False, told, 'a product on each', 'see nvidia-smi -q, and dmesg for Xid')
    ]
  each = [
    (f'device {index} of {one["host"]}', measured)
    for one in found
    for index, measured in enumerate(one['chips']['each'])
  ]
  if not each:
    return []
  apart = [
    (error, f'{name} on {where}')
    for where, measured in each
    for name, error in measured['errors'].items()
  ]
  worst, at = max(apart, key=lambda pair: math.inf if math.isnan(pair[0]) else pair[0])
  kernels = Check(
    'kernels',
    worst <= _WRONG,
    f'{worst:.1g} off the reference at most, {at}',
    f'{_WRONG:g} or less',
    'on one device alone: take it out of service; on all: pass --model.attention=blocked',
  )
  return [
    kernels,
    _pace('product', 'TFLOP/s', [(measured['flops'] / 1e12, where) for where, measured in each]),
    _pace('memory read', 'TB/s', [(measured['bytes'] / 1e12, where) for where, measured in each]),
  ]


def _pace(name: str, unit: str, rates: list[tuple[float, str]]) -> Check:
  """Whether the slowest device is about as fast as the median."""
  median, (slowest, where) = statistics.median(rate for rate, _ in rates), min(rates)
  alone = len(rates) == 1
  return Check(
    name,
    slowest >= _SLOW * median,
    f'{median:.3g} {unit}' + ('' if alone else f'; {slowest:.3g} on {where}'),
    'any' if alone else f'{_SLOW:.0%} of the median on each',
    'see nvidia-smi -q -d PERFORMANCE,CLOCK there: heat, a power cap, or another program',
  )


def _network(task: Doctor, found: Sequence[Found]) -> list[Check]:
  """Whether all devices can add up a number, and how fast."""
  failed = [one['all_reduce'] for one in found if 'failed' in one['all_reduce']]
  if failed:
    told = _by_value([one['all_reduce'].get('failed', 'done') for one in found])
    fix = 'see that machines reach each other on every port, and for GPUs what NCCL_DEBUG=INFO says'
    return [Check('all-reduce', False, told, 'the sum over all devices', fix)]
  slowest = min(one['all_reduce']['bytes_per_second'] for one in found)
  latency = max(one['all_reduce']['latency'] for one in found)
  devices, wanted = found[0]['devices'], task.bandwidth_gb
  if devices == 1:
    return []
  return [
    Check(
      'all-reduce',
      wanted is None or slowest >= wanted * GB,
      f'{slowest / GB:.2f} GB/s a device, {latency * 1e6:.0f} us over {devices}',
      'any' if wanted is None else f'{wanted:g} GB/s or more',
      'see with NCCL_DEBUG=INFO that NCCL uses NVLink and InfiniBand, not sockets (NCCL_SOCKET_IFNAME, NCCL_IB_HCA)',
    )
  ]


def _by_value(values: Sequence[str]) -> str:
  """`a` where all are, else `a in processes 0, 1, 2; b in process 3`."""
  where: dict[str, list[int]] = {}
  for process, value in enumerate(values):
    where.setdefault(value, []).append(process)
  if len(where) == 1:
    return values[0]
  return '; '.join(f'{value} in {_processes(numbers)}' for value, numbers in where.items())


def _processes(numbers: Sequence[int]) -> str:
  return f'{"process" if len(numbers) == 1 else "processes"} {_some([str(n) for n in numbers])}'


def _some(items: Sequence[str]) -> str:
  """The first of `items`: there may be thousands."""
  return ', '.join(items[:8]) + (' ...' if len(items) > 8 else '')


def _count(number: int, one: str, many: str) -> str:
  return f'{number} {one if number == 1 else many}'
