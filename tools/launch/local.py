"""Starts one run as several processes on this machine, as a cluster would: the same flags for each.

  python tools/launch/local.py --processes=4 -- --experiment=posts_tiny --mesh.data=4

Lines of all but process 0 begin with their number; SIGTERM, Ctrl-C and a closed terminal reach all.
Exits with 75 when all have saved, else as the first that failed, half a minute later at most.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import NoReturn

PATIENCE, AGAIN = 30.0, 75


class Parser(argparse.ArgumentParser):
  def error(self, message: str) -> NoReturn:
    self.exit(2, f'local.py: {message}: see --help\n')


def start(number: int, count: int, port: int, devices: int, flags: list[str]) -> subprocess.Popen:
  """Process `number` of `count`; in a session of its own, so that Ctrl-C reaches it once."""
  split = f' --xla_force_host_platform_device_count={devices}' * bool(devices)
  env = os.environ | {'XLA_FLAGS': os.environ.get('XLA_FLAGS', '') + split}
  where = [f'--hosts.coordinator=127.0.0.1:{port}', f'--hosts.processes={count}']
  command = [sys.executable, '-m', 'lmjax.main', *flags, *where, f'--hosts.process={number}']
  pipe = subprocess.PIPE if number or not sys.stdout.isatty() else None  # so that no lines mix
  both = subprocess.STDOUT if number else None
  return subprocess.Popen(command, env=env, start_new_session=True, stdout=pipe, stderr=both)


def show(process: subprocess.Popen, number: int) -> None:
  for line in process.stdout or ():
    if line.strip() or not number:
      print(f'[{number}] ' * bool(number) + line.decode(errors='replace'), end='', flush=True)


def wait(left: list[subprocess.Popen]) -> int:
  """The exit code of all, of the killed before who heard of it; kills what outlives a failure."""
  codes, deadline = [], float('inf')
  while left:
    for process in sorted(left, key=lambda one: one.poll() or 0):
      if (code := process.returncode) is not None:
        left.remove(process)
        codes.append(code if code >= 0 else 128 - code)
        deadline = min(deadline, time.monotonic() + PATIENCE) if code else deadline
    _ = [process.kill() for process in left if time.monotonic() > deadline]
    time.sleep(0.05)
  return next((code for code in codes if code not in (0, AGAIN)), max(codes))


def main() -> int:
  parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--processes', type=int, required=True, help='how many to start')
  parser.add_argument('--devices', type=int, default=0, help='virtual devices of each, on a CPU')
  parser.add_argument('flags', nargs='+', metavar='-- --experiment=NAME ...', help='of lmjax.main')
  given = parser.parse_args()
  if given.processes < 1 or given.devices < 0:
    parser.error('--processes=1 or more and --devices=0 (as they are) or more are allowed')
  port = socket.create_server(('127.0.0.1', 0)).getsockname()[1]
  left: list[subprocess.Popen] = []
  tell = lambda kind, _: [one.send_signal(max(kind, signal.SIGINT)) for one in left]  # HUP as INT
  for kind in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(kind) != signal.SIG_IGN:  # as SIGHUP is under nohup
      signal.signal(kind, tell)
  for number in range(given.processes):
    left.append(start(number, given.processes, port, given.devices, given.flags))
    threading.Thread(target=show, args=(left[-1], number)).start()
  return wait(left)


if __name__ == '__main__':
  sys.exit(main())
