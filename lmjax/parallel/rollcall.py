"""Who takes part in a run, and who has left it: a connection from every process to process 0.

jax.distributed ends a process from C++, and names nobody, when some do not come or one dies; on a GPU a
collective waits for a dead process without end. So process 0 calls the roll here first, and while the
run lasts these connections tell every process at once that another failed or is gone: the kernel closes
them with the process, and keepalive notices a host that fell silent. Knows nothing of JAX.
"""

import json
import os
import platform
import selectors
import socket
import sys
import threading
import time
import traceback
from typing import Any, NamedTuple, NoReturn

from lmjax.core.errors import UserError

EXIT_USER, EXIT_OTHER = 2, 1
_HELLO_SECONDS = 5.0  # for a line of a process that is there
_NEWS_SECONDS = 5.0  # for the word of another's end to go round
_BEATS = 4  # signs of life within the silence that is allowed
_LAST_SECONDS = 3600.0  # in which process 0 finishes the report while the others wait
_LOOPBACK = ('localhost', '127.', '::1', '[::1]')


class Place(NamedTuple):
  """A process among those of a run; `host` and `port` are process 0's."""

  host: str
  port: int
  processes: int
  process: int

  @property
  def address(self) -> str:
    return f'{self.host}:{self.port}'

  @property
  def is_loopback(self) -> bool:
    return self.host.startswith(_LOOPBACK)


class Roll:
  """The processes of a run once all are there, and the news of their ends.

  Args:
    place: of this process.
    hosts: host name of every process.
    lines: process -> its connection: those of all others at process 0, of process 0 elsewhere.
    silence: seconds without a sign of life after which a host counts as gone.
  """

  def __init__(
    self, place: Place, hosts: list[str], lines: dict[int, '_Line'], silence: float
  ) -> None:
    self.place, self.hosts = place, hosts
    self._lines, self._done = lines, {place.process: False} | dict.fromkeys(lines, False)
    self._all_done, self._lock = threading.Event(), threading.RLock()
    self._silence, self._heard = silence, dict.fromkeys(lines, time.monotonic())
    for line in lines.values():
      line.keep_alive(silence)
    threading.Thread(target=self._watch, name='roll', daemon=True).start()

  def fail(self, error: BaseException) -> NoReturn:
    """Prints what ended this process, tells the others and exits as they do.

    An error that comes of another's end is left to the news of it. Exits without leaving by way of
    Python, where JAX would wait for the others.
    """
    if _is_of_another(error):
      time.sleep(_NEWS_SECONDS)  # the watching thread exits meanwhile
    sys.stdout.flush()
    if isinstance(error, UserError):
      self.end(EXIT_USER, str(error))
    if isinstance(error, KeyboardInterrupt):
      self.end(EXIT_OTHER, 'interrupted')
    traceback.print_exception(error)
    first, _, _ = str(error).partition('\n')
    self.end(EXIT_OTHER, f'{type(error).__name__}: {first}')

  def end(self, code: int, sentence: str, *, say: bool = True) -> NoReturn:
    """Exits at once with `code`, and so does every other process, which says why."""
    if say:
      _say(self.place.process, sentence)
    self._tell(code, f'ended because process {self.place.process} did: {sentence}')
    os._exit(code)

  def leave(self) -> None:
    """Waits until every process is done, so that none takes another's end for a failure."""
    self._finish(self.place.process)
    if not self._all_done.wait(_LAST_SECONDS):
      late = [process for process, done in self._done.items() if not done]
      self.end(EXIT_OTHER, f'{names(late)} did not end within {_LAST_SECONDS:.0f} s')

  def _finish(self, process: int) -> None:
    """Notes that `process` is done; process 0 tells the others when all are."""
    with self._lock:
      self._done[process] = True
      if self.place.process == process != 0:
        self._lines[0].send({'done': True})
      if self.place.process == 0 and all(self._done.values()):
        for line in self._lines.values():
          line.send({'done': True})
      if self._done[0] if self.place.process else all(self._done.values()):
        self._all_done.set()

  def _tell(self, code: int, said: str) -> None:
    """Has the others say `said` and exit with `code`; waits until those who were told have gone, or a moment."""
    with self._lock:
      for line in self._lines.values():
        line.send({'code': code, 'said': said})
      deadline = time.monotonic() + _NEWS_SECONDS
      for line in self._lines.values():
        line.drain(deadline)

  def _watch(self) -> None:
    with selectors.DefaultSelector() as selector:
      for process, line in self._lines.items():
        selector.register(line.socket, selectors.EVENT_READ, process)
      beat = self._silence / _BEATS
      due = time.monotonic()
      while selector.get_map():
        ready = selector.select(max(0.0, due - time.monotonic()))
        with self._lock:
          for key, _ in ready:
            if not self._hear(key.data):
              selector.unregister(key.fileobj)
          if time.monotonic() >= due:
            due = time.monotonic() + beat
            self._beat(due - self._silence - beat)

  def _beat(self, before: float) -> None:
    """Tells the others that this process is alive, and ends where one was last heard `before`.

    A connection alone does not tell: the kernel of a process that is stopped answers for it.
    """
    for process, line in self._lines.items():
      if not self._done[process] and self._heard[process] < before:
        self._spread(
          EXIT_OTHER,
          f'process {process} on {self.hosts[process]} was silent for {self._silence:g} s: it is '
          'stopped or stuck, or its host is; --hosts.silence=SECONDS waits longer',
        )
      line.send({'alive': True})

  def _hear(self, process: int) -> bool:
    """Acts on what `process` has sent; whether there may be more."""
    line = self._lines[process]
    while True:
      news = line.receive()
      if news is None:
        if not self._done[process]:
          where = f'process {process} on {self.hosts[process]}'
          self._spread(EXIT_OTHER, f'{where} ended without a word: its own output may say why')
        return False
      self._heard[process] = time.monotonic()
      if 'code' in news:
        self._spread(news['code'], news['said'])
      if 'done' in news:
        self._finish(process)
      if not line.has_more:
        return True

  def _spread(self, code: int, sentence: str) -> NoReturn:
    """Ends this process because of another; process 0 has the rest end too."""
    _say(self.place.process, sentence)
    if self.place.process == 0:
      self._tell(code, sentence)
    os._exit(code)


def call(place: Place, seconds: float, silence: float) -> Roll:
  """The roll as process 0 calls it: returns when every process has come.

  Raises:
    UserError: not all came within `seconds`, or they contradict each other. All are told.
  """
  deadline = time.monotonic() + seconds
  lines: dict[int, _Line] = {}
  hosts, refusal = {0: platform.node()}, None
  with _listen(place.port) as server:
    while not refusal and len(hosts) < place.processes:
      server.settimeout(max(0.01, deadline - time.monotonic()))
      try:
        line = _Line(server.accept()[0])
      except TimeoutError:
        refusal = _missing(place, hosts, seconds)
        break
      hello = line.receive_within(_HELLO_SECONDS)
      if hello is None or 'processes' not in hello:
        line.socket.close()  # of a stranger: a port scanner, a health check
        continue
      process = hello['process']
      if process in lines and lines[process].is_closed:
        del hosts[process]  # it was started again
      refusal = _contradiction(place, hosts, hello)
      if refusal:
        line.send({'refused': refusal})
      else:
        lines[process], hosts[process] = line, hello['host']
  in_order = [hosts[process] for process in sorted(hosts)]
  for line in lines.values():
    line.send({'refused': refusal} if refusal else {'hosts': in_order})
  if refusal:
    raise UserError(refusal)
  return Roll(place, in_order, lines, silence)


def answer(place: Place, seconds: float, silence: float) -> Roll:
  """The roll as every other process answers it: returns when every process has come.

  Raises:
    UserError: process 0 is not reached within `seconds`, or refuses.
  """
  deadline = time.monotonic() + seconds
  line = _reach(place, deadline, seconds)
  line.send({'process': place.process, 'processes': place.processes, 'host': platform.node()})
  reply = line.receive_within(max(0.0, deadline - time.monotonic()) + _HELLO_SECONDS)
  if reply is None or not reply.keys() & {'refused', 'hosts'}:
    raise UserError(
      f'{place.address} answers, but not as process 0 of this run: pass '
      '--hosts.coordinator=HOST:PORT with a port that nothing else uses, and look at what process 0 says'
    )
  if 'refused' in reply:
    raise UserError(reply['refused'])
  return Roll(place, reply['hosts'], {0: line}, silence)


def names(processes: list[int]) -> str:
  """`process 3`, `processes 1, 2 and 5`, of many the first."""
  shown = [str(process) for process in processes[:8]]
  if len(processes) == 1:
    return f'process {shown[0]}'
  more = f'{len(processes) - 8} more' if len(processes) > 8 else shown.pop()
  return f'processes {", ".join(shown)} and {more}'


def _listen(port: int) -> socket.socket:
  try:
    if socket.has_dualstack_ipv6():
      return socket.create_server(('', port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(('', port))
  except OSError as error:
    raise UserError(
      f'process 0 cannot listen on port {port} ({os.strerror(error.errno or 0)}), which another run or a second '
      'process 0 may hold: stop that one, or pass another port with --hosts.coordinator'
    ) from None


def _missing(place: Place, hosts: dict[int, str], seconds: float) -> str:
  missing = [process for process in range(place.processes) if process not in hosts]
  return (
    f'of {place.processes} processes {len(hosts)} came within {seconds:g} s, without '
    f'{names(missing)}: start all of them, or pass the --hosts.processes that there are'
  )


def _contradiction(place: Place, hosts: dict[int, str], hello: dict[str, Any]) -> str | None:
  """What is wrong with a process that says `hello`, or None."""
  process, host = hello['process'], hello['host']
  if hello['processes'] != place.processes:
    return (
      f'process {process} on {host} expects {hello["processes"]} processes and process 0 '
      f'{place.processes}: pass the same --hosts.processes to all'
    )
  if process in hosts:
    return (
      f'two processes are number {process}, on {hosts[process]} and on {host}: '
      f'give each its own --hosts.process from 0 to {place.processes - 1}'
    )
  if place.is_loopback and host != hosts[0]:
    return loopback_sentence(place, f'{hosts[0]} and {host}')
  return None


def loopback_sentence(place: Place, where: str) -> str:
  return (
    f'hosts.coordinator={place.address} is the loop-back address, which means another machine on each '
    f"host, and processes run on {where}: pass the name or address of process 0's host"
  )


def _reach(place: Place, deadline: float, seconds: float) -> '_Line':
  """A connection to process 0, which may start later than this one."""
  while True:
    left = deadline - time.monotonic()
    try:
      return _Line(socket.create_connection((place.host.strip('[]'), place.port), max(0.1, left)))
    except OSError as error:
      if left > 0.2:
        time.sleep(0.2)
        continue
      own = ' and that it runs on this machine' if place.is_loopback else ''
      raise UserError(
        f'process {place.process} on {platform.node()} did not reach the coordinator '
        f'{place.address} within {seconds:g} s ({error.strerror or error}): check that process 0 was '
        f'started there{own}, that the name resolves and that no firewall closes the port'
      ) from None


class _Line:
  """A connection that carries one JSON object a line."""

  def __init__(self, connection: socket.socket) -> None:
    self.socket = connection
    self._rest = b''

  def keep_alive(self, silence: float) -> None:
    """Has the kernel close the connection when the other host is silent for that long."""
    self.socket.settimeout(_HELLO_SECONDS)
    self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    each = max(1, round(silence / 4))
    for name, value in (('TCP_KEEPIDLE', each), ('TCP_KEEPINTVL', each), ('TCP_KEEPCNT', 3)):
      if hasattr(socket, name):
        self.socket.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

  def send(self, value: dict[str, Any]) -> None:
    """Sends `value`, unless the other is gone, which the watching thread notices."""
    try:
      self.socket.sendall(json.dumps(value).encode() + b'\n')
    except OSError:
      return

  def receive(self) -> dict[str, Any] | None:
    """The next object; None where the connection has ended or carries something else."""
    while b'\n' not in self._rest:
      try:
        more = self.socket.recv(1 << 16)
      except OSError:
        return None
      if not more:
        return None
      self._rest += more
    first, _, self._rest = self._rest.partition(b'\n')
    try:
      value = json.loads(first)
    except ValueError:
      return None
    return value if isinstance(value, dict) else None

  @property
  def has_more(self) -> bool:
    """Whether another object is here already."""
    return b'\n' in self._rest

  @property
  def is_closed(self) -> bool:
    """Whether the other has closed its end."""
    self.socket.setblocking(False)
    try:
      return not self.socket.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
      return False
    except OSError:
      return True

  def receive_within(self, seconds: float) -> dict[str, Any] | None:
    self.socket.settimeout(seconds)
    return self.receive()

  def drain(self, deadline: float) -> None:
    """Returns when the other has ended or says so, or at the deadline."""
    try:
      self.socket.settimeout(max(0.01, deadline - time.monotonic()))
      self.socket.recv(1 << 16)
    except OSError:
      return


def _is_of_another(error: BaseException) -> bool:
  """Whether a collective failed because a process that takes part in it has ended."""
  words = ('gloo', 'nccl', 'coordination', 'connection', 'heartbeat')
  return type(error).__module__.startswith(('jax', 'builtins')) and any(
    word in str(error).lower() for word in words
  )


def _say(process: int, sentence: str) -> None:
  # Straight to the file descriptor: the main thread may hold the lock of the buffered stream.
  os.write(2, f'\nlmjax: process {process}: {sentence}\n'.encode(errors='backslashreplace'))
