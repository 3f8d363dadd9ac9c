"""The processes of a run: found, connected, and told of each other's ends; every wait has a deadline.

The one file that uses JAX's coordination service (its client is private). Knows nothing of meshes.
"""

import collections
import hashlib
import json
import os
import re
import time
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, NoReturn

import jax
from jax._src import distributed

from lmjax.core.config import Config, leaf
from lmjax.core.errors import UserError
from lmjax.core.task import EXIT_AGAIN
from lmjax.parallel import rollcall
from lmjax.parallel.rollcall import Place, Roll

_PORTS = (61440, 4096)  # first and how many: a job's number picks one, the same on every host
_JAX_LATER = 60  # seconds after the roll would have told it that JAX gives a silent process up


class Hosts(Config):
  """The processes of a run. Found from Slurm, Open MPI or Kubernetes where no flag says them."""

  coordinator: str | None = leaf(None, 'HOST:PORT of process 0; none: found.', run=True)
  processes: int | None = leaf(None, 'How many there are; none: found, else one.', low=1, run=True)
  process: int | None = leaf(None, 'Which of them this is, from 0; none: found.', low=0, run=True)
  local_devices: int | None = leaf(
    None, 'Accelerators that each process must see; none: not checked.', low=1, run=True
  )
  timeout: float = leaf(
    300.0, 'Seconds to wait for the others, at the start and later.', above=0, run=True
  )
  silence: float = leaf(
    60.0, 'Seconds without a sign of life after which a host counts as gone.', low=4, run=True
  )

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.coordinator is not None:
      _host_and_port('coordinator', self.coordinator)
    if self.process is not None and self.process >= (self.processes or self.process + 1):
      raise UserError(
        f'process={self.process} is not one of processes={self.processes}, which are counted from '
        f'0: pass 0 to {(self.processes or 0) - 1}'
      )

  def connect(self, settings: Mapping[str, Any] | None = None) -> int:
    """Sets up jax.distributed where there are several processes; returns this one's number.

    To be called once, before JAX touches a device. Where this fails on one process it does on all.

    Args:
      settings: leaf -> value of the task; the processes are refused if they differ.

    Raises:
      UserError: something is wrong that was found before the processes knew of each other; after
        that every process says so and exits.
    """
    place = find(self, os.environ)
    if place is None:
      return 0
    join = rollcall.answer if place.process else rollcall.call
    began = time.monotonic()
    _state.roll = join(place, self.timeout, self.silence)
    _state.timeout = self.timeout
    try:
      self._set_up(place, max(30.0, self.timeout - (time.monotonic() - began)))
      self._check_devices(place)
      if settings is not None:
        _check_same(settings)
    except Exception as error:
      _state.roll.fail(error)
    return place.process

  def _set_up(self, place: Place, seconds: float) -> None:
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    # It would take SIGTERM for itself, and our own guard agrees in the step.
    jax.config.update('jax_enable_preemption_service', False)
    silence = round(self.silence) + _JAX_LATER
    jax.distributed.initialize(
      place.address,
      place.processes,
      place.process,
      local_device_ids=local_device_ids(os.environ, self.local_devices or allotted(os.environ)),
      cluster_detection_method='deactivate',
      initialization_timeout=round(seconds),
      heartbeat_timeout_seconds=silence,
      shutdown_timeout_seconds=silence,
    )

  def _check_devices(self, place: Place) -> None:
    given = allotted(os.environ) if jax.default_backend() == 'gpu' else None
    sentence = devices_sentence(place, jax.local_device_count(), self.local_devices, given)
    if sentence:
      raise UserError(sentence)


class _State:
  """What `connect` has left for the functions below."""

  roll: Roll | None = None
  timeout: float = 300.0
  uses: collections.Counter[str] = collections.Counter()  # noqa: RUF012


_state = _State()


def count() -> int:
  """How many processes take part."""
  return _state.roll.place.processes if _state.roll else 1


def index() -> int:
  """Which of them this is."""
  return _state.roll.place.process if _state.roll else 0


def machines() -> list[int]:
  """Of every process, the first process on its machine."""
  names = _state.roll.hosts if _state.roll else ['']
  return [names.index(name) for name in names]


def is_leader() -> bool:
  """Whether this process prints and writes what a run writes once."""
  return index() == 0


def say(text: str) -> None:
  """Prints `text`, on the leader alone."""
  if is_leader():
    print(text, flush=True)


def barrier(name: str, seconds: float | None = None) -> None:
  """Returns when every process has come here; UserError that names the missing after `seconds`."""
  share(name, '', seconds)


def share(name: str, value: str, seconds: float | None = None) -> list[str]:
  """The value of every process, in their order.

  Args:
    name: of this exchange; all processes make the same exchanges of one name in the same order.
    value: this process's.
    seconds: to wait for the others; None for `hosts.timeout`.

  Raises:
    UserError: some did not come.
  """
  if count() == 1:
    return [value]
  client: Any = distributed.global_state.client
  seconds = _state.timeout if seconds is None else seconds
  _state.uses[name] += 1
  key = f'lmjax/{name}/{_state.uses[name]}'
  client.key_value_set(f'{key}/{index()}', value)
  try:
    client.wait_at_barrier(key, timeout_in_ms=round(1000 * seconds))
  except jax.errors.JaxRuntimeError as error:
    came = _shared(client, key)
    missing = [process for process in range(count()) if process not in came]
    if not missing:
      raise
    raise UserError(
      f'{rollcall.names(missing)} did not come to {name!r} within {seconds:g} s: '
      'look at what they say, and raise --hosts.timeout if they are only slow'
    ) from error
  found = _shared(client, key)
  if is_leader():  # every process is past the exchange before
    client.key_value_delete(f'lmjax/{name}/{_state.uses[name] - 1}')
  return [found[process] for process in range(count())]


def _shared(client: Any, key: str) -> dict[int, str]:
  """Process -> value under the exchange `key`."""
  return {int(path.rpartition('/')[2]): value for path, value in client.key_value_dir_get(key)}


def check_equal(name: str, value: str, what: str, seconds: float | None = None) -> None:
  """UserError on all processes when one's `value` is not process 0's; `what` says what to do."""
  found = share(name, value, seconds)
  others = [process for process, its in enumerate(found) if its != found[0]]
  if others:
    raise UserError(f'{rollcall.names(others)} and process 0 differ in {name}: {what}')


def leave(error: BaseException | None = None) -> None:
  """Ends what `connect` began: waits until all are done, or tells them of `error` and exits."""
  if _state.roll:
    together = isinstance(error, SystemExit) and error.code in (0, EXIT_AGAIN)
    if error is not None and not together:
      _state.roll.fail(error)
    _state.roll.leave()


def end(code: int, sentence: str) -> NoReturn:
  """Exits at once with `code` and has the other processes do so too; `sentence` says why."""
  if _state.roll:
    _state.roll.end(code, sentence, say=False)
  os._exit(code)


def find(hosts: Hosts, environment: Mapping[str, str]) -> Place | None:
  """Where this process stands among those of its run, by flags before environment; None of one.

  Raises:
    UserError: they contradict each other or say too little.
  """
  found = _scheduled(environment)
  flags = {name: getattr(hosts, name) for name in ('coordinator', 'processes', 'process')}
  given = {**found, **{name: value for name, value in flags.items() if value is not None}}
  if not given or given.get('processes') == 1:
    return None
  missing = [f'--hosts.{name}' for name in flags if given.get(name) is None]
  if missing:
    have = ', '.join(f'{name}={given[name]}' for name in flags if given.get(name) is not None)
    raise UserError(
      f'of the processes of this run only {have} is known, from {found.get("by", "flags")}: '
      f'pass {" and ".join(missing)} too, or none of them to run as one process'
    )
  process, processes = given['process'], given['processes']
  if process >= processes:
    raise UserError(
      f'process {process} is not one of {processes} processes, which are counted from 0: pass '
      f'--hosts.process=0 to {processes - 1}, or the --hosts.processes that there are'
    )
  host, port = _host_and_port('LMJAX_COORDINATOR', given['coordinator'])
  place = Place(host, port, processes, process)
  if place.is_loopback and found.get('nodes', 1) > 1:
    raise UserError(rollcall.loopback_sentence(place, f'{found["nodes"]} nodes'))
  return place


def _scheduled(environment: Mapping[str, str]) -> dict[str, Any]:
  """What Slurm, Open MPI or Kubernetes says of the processes of a run; nothing without them."""
  get = environment.get
  number = lambda name, otherwise='1': _whole(name, get(name, str(otherwise)))
  tasks = number('SLURM_STEP_NUM_TASKS', get('SLURM_NTASKS', '1'))
  if tasks > 1 and 'SLURM_PROCID' in environment:
    nodes = get('SLURM_STEP_NODELIST', get('SLURM_JOB_NODELIST', ''))
    return {
      'by': 'Slurm',
      'coordinator': f'{first_node(nodes)}:{_port(number("SLURM_JOB_ID", "0"))}' if nodes else None,
      'processes': tasks,
      'process': number('SLURM_PROCID'),
      'nodes': number('SLURM_STEP_NUM_NODES', get('SLURM_NNODES', '1')),
    }
  if number('OMPI_COMM_WORLD_SIZE') > 1:
    uri = re.match(r'(\d+)\.\d+;tcp6?://\[?([^,:\]]+)', get('OMPI_MCA_orte_hnp_uri', ''))
    return {
      'by': 'Open MPI',
      'coordinator': f'{uri[2]}:{_port(int(uri[1]) >> 12)}' if uri else None,
      'processes': number('OMPI_COMM_WORLD_SIZE'),
      'process': number('OMPI_COMM_WORLD_RANK') if 'OMPI_COMM_WORLD_RANK' in environment else None,
    }
  if number('LMJAX_PROCESSES') > 1:
    return {
      'by': 'the environment (LMJAX_COORDINATOR, LMJAX_PROCESSES, JOB_COMPLETION_INDEX)',
      'coordinator': get('LMJAX_COORDINATOR'),
      'processes': number('LMJAX_PROCESSES'),
      'process': number('JOB_COMPLETION_INDEX') if 'JOB_COMPLETION_INDEX' in environment else None,
    }
  return {}


def _whole(name: str, text: str) -> int:
  """The number that the environment variable `name` holds."""
  if not re.fullmatch('[0-9]+', text):
    raise UserError(f'{name}={text}: expected a whole number, set it so or take it away')
  return int(text)


def _host_and_port(name: str, address: str) -> tuple[str, int]:
  """Both parts of an address that the setting `name` gives."""
  found = re.fullmatch(r'(.+):([0-9]{1,5})', address)
  if not found or not 0 < int(found[2]) < 1 << 16:
    raise UserError(
      f'{name}={address}: expected HOST:PORT, such as node7:1234, with a port up to 65535'
    )
  return found[1], int(found[2])


def first_node(nodes: str) -> str:
  """The first of a Slurm node list: `gpu7` of `gpu[7-9,12],cpu1`."""
  found = re.match(r'([^,\[]+)(?:\[(\w+))?', nodes)
  if not found:
    raise UserError(
      f'the node list {nodes!r} has no first node: pass --hosts.coordinator=HOST:PORT'
    )
  return found[1] + (found[2] or '')


def _port(job: int) -> int:
  return _PORTS[0] + job % _PORTS[1]


def local_device_ids(environment: Mapping[str, str], each: int | None) -> list[int] | None:
  """The GPUs of this process among those of its node; None where it takes all that it sees.

  Where a scheduler starts several processes a node and lets each see all GPUs, they share them out:
  `each` to a process, one by default.
  """
  get = environment.get
  local = get('SLURM_LOCALID') or get('OMPI_COMM_WORLD_LOCAL_RANK')
  tasks = get('OMPI_COMM_WORLD_LOCAL_SIZE') or get('SLURM_STEP_TASKS_PER_NODE', '1')  # 8(x2),4
  visible = get('CUDA_VISIBLE_DEVICES', '').split(',')
  each = each or 1
  if local is None or tasks.partition('(')[0] == '1' or (visible != [''] and len(visible) <= each):
    return None
  return list(range(int(local) * each, int(local) * each + each))


def allotted(environment: Mapping[str, str]) -> int | None:
  """The GPUs of this node that Slurm has given the job, for each process there; None: not said."""
  get = environment.get
  gpus, node = get('SLURM_GPUS_ON_NODE', ''), get('SLURM_NODEID', '')
  if not (gpus.isdigit() and node.isdigit()):
    return None
  tasks = []
  for count, times in re.findall(r'(\d+)(?:\(x(\d+)\))?', get('SLURM_STEP_TASKS_PER_NODE', '')):
    tasks += [int(count)] * int(times or 1)
  here = tasks[int(node)] if int(node) < len(tasks) else 0
  return int(gpus) // here or None if here else None


def devices_sentence(place: Place, seen: int, wanted: int | None, given: int | None) -> str | None:
  """What is wrong where a process sees `seen` devices, or None.

  Args:
    wanted: by --hosts.local_devices.
    given: GPUs that the scheduler gave it.
  """
  sees = f'process {place.process} sees {seen} {"device" if seen == 1 else "devices"}'
  remedy = '(Slurm: --gpus-per-node and not --gpus-per-task=1), and see CUDA_VISIBLE_DEVICES'
  if wanted not in (None, seen):
    return (
      f'{sees}, --hosts.local_devices={wanted} are expected: ask the launcher for that many a '
      f'process {remedy}'
    )
  if wanted is None and given is not None and seen < given:
    return (
      f'{sees} of the {given} GPUs that Slurm gave it: ask for what it shall use {remedy}; '
      f'--hosts.local_devices={seen} leaves the others idle'
    )
  return None


def _check_same(settings: Mapping[str, Any]) -> None:
  """UserError that names the process and the setting when not all were started alike."""
  mine = {f'version of {name}': version(name) for name in ('lmjax', 'jax', 'jaxlib')}
  mine |= {name: value for name, value in settings.items() if not name.startswith('hosts.')}
  text = json.dumps(mine, sort_keys=True)
  if len(set(share('hash of settings', hashlib.sha256(text.encode()).hexdigest()))) == 1:
    return
  told = [json.loads(text) for text in share('settings', text)]
  for process, its in enumerate(told):
    differ = [name for name in {**told[0], **its} if its.get(name) != told[0].get(name)]
    if differ:
      pairs = '; '.join(f'{name} is {its.get(name)}, not {told[0].get(name)}' for name in differ)
      raise UserError(
        f'process {process} was started otherwise than process 0 ({pairs}): '
        'start all with the same version and flags'
      )
