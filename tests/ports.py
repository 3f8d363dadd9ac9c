"""Ports for servers that tests start as processes of their own."""

import itertools
import os
import random
import re
import socket

# Below those that Linux hands out to whoever asks for any (32,768 on), so that between the choice here
# and the start of the server, which is seconds, nobody is given one of them.
_FIRST, _LAST = 12_000, 32_000
_WORKERS = 16  # each of a test session has ports of its own


def _places():
  """All ports of this worker, from one on that differs between sessions."""
  worker = int((re.findall(r'\d+', os.environ.get('PYTEST_XDIST_WORKER', '')) or ['0'])[0])
  ports = range(_FIRST + worker % _WORKERS, _LAST, _WORKERS)
  start = random.SystemRandom().randrange(len(ports))
  return itertools.cycle([*ports[start:], *ports[:start]])


_PLACES = _places()


def free_port() -> int:
  """A port of this machine on which nothing listens, another at each call."""
  for port in _PLACES:
    with socket.socket() as probe:
      try:
        probe.bind(('', port))
      except OSError:
        continue
      return port
  raise AssertionError('the ports never end')
