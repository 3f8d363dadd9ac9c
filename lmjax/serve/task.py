"""The tasks that serve a model over HTTP and that make keys for it."""

import asyncio
import contextlib
import importlib
import importlib.util
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lmjax.ads.maker import Maker, Making
from lmjax.core.config import leaf, part
from lmjax.core.errors import UserError, need
from lmjax.core.storage import at
from lmjax.core.task import Report, Task
from lmjax.generate.continuous import Batching
from lmjax.generate.sampler import Sampler
from lmjax.interop.load import CHECKPOINT, Loaded, load
from lmjax.parallel.mesh import Mesh
from lmjax.parallel.sharding import check_mesh
from lmjax.serve.limits import Limits

if TYPE_CHECKING:
  from lmjax.search.searcher import Searcher
  from lmjax.serve.ads import Desk
  from lmjax.serve.service import Moderation, Service

DEFAULT = 'smollm2-135m-instruct'
_LOOPBACK = ('127.0.0.1', 'localhost', '::1')
_EXTRA = "serving needs FastAPI and what goes with it: pip install 'lmjax[serve]'"


class Serving(Task):
  """What the server and the terminal share: a model, and how its tokens are drawn."""

  checkpoint: str = leaf(DEFAULT, CHECKPOINT)
  weights: Literal['trained', 'int8'] = leaf(
    'trained', 'As they were trained, or in int8 with a scale for every 32: a quarter to read.'
  )
  kv: Literal['computed', 'int8'] = leaf(
    'computed', 'Keys and values as computed, or in int8 with a scale for each token and head.'
  )
  sampler: Sampler = part(Sampler(temperature=0.2, top_p=0.9), 'Where a request does not say.')
  batching: Batching = part(Batching(), 'How sequences share the machine.')
  mesh: Mesh = part(Mesh(), 'Devices that share each sequence: mesh.tensor alone.', run=True)

  def make_service(self, limits: Limits, name: str = '', moderation: Any = None) -> 'Service':
    """The model at `checkpoint`, not warm yet, called `name`, else as its checkpoint is."""
    try:
      from lmjax.serve.service import Service
    except ImportError:
      raise UserError(_EXTRA) from None
    print(f'loading {self.checkpoint} ...', flush=True)
    mesh = self.mesh.build() if self.mesh.devices > 1 else None
    if self.mesh.devices != self.mesh.tensor:
      raise UserError(
        f'mesh {self.mesh}: serving splits over mesh.tensor alone: leave the others at 1'
      )
    loaded = load(self.checkpoint, mesh)
    if mesh is not None:
      check_mesh(self.mesh.sizes, loaded.model, 1, 1)
    return Service(
      loaded,
      name=name or default_name(self.checkpoint, loaded),
      batching=self.batching,
      limits=limits,
      sampler=self.sampler,
      int8=self.weights == 'int8',
      int8_cache=self.kv == 'int8',
      mesh=mesh,
      moderation=moderation,
    )


class Serve(Serving):
  """Answers over HTTP as OpenAI's API does, and shows a page to talk to the model."""

  host: str = leaf('127.0.0.1', 'Address to listen at; others than loop-back need api_keys.')
  port: int = leaf(8000, 'TCP port; 0: one that is free.', low=0, high=65_535)
  name: str = leaf('', "What the API calls the model; empty: its checkpoint's name.")
  api_keys: str = leaf('', 'File of keys, from --experiment=api_key; empty: nobody needs one.')
  moderation: str = leaf(
    '',
    'package.module:function of (text, side) -> why it is refused, or None; or a run of review_train.',
  )
  index: str = leaf('', 'Folder of an index that search_posts built, for /search and the page.')
  search_checkpoint: str = leaf('', 'The folder of a run of search_tune, for this index.')
  ads: Making = part(Making(), 'How /ads makes advertisements.')
  audit_text: bool = leaf(False, 'Also write what is asked and answered to audit.jsonl.')
  drain_seconds: float = leaf(30.0, 'After SIGTERM, for answers under way.', low=0.0)
  limits: Limits = part(Limits(), 'How much one may ask.')

  def run(self, workdir: Path) -> Report:
    """Serves until SIGTERM or Ctrl-C, then finishes what is under way."""
    local = self.host in _LOOPBACK
    if not local and not self.api_keys:
      raise UserError(
        f'--host={self.host} lets others in: make keys with --experiment=api_key and pass '
        '--api_keys=FILE, or keep --host=127.0.0.1'
      )
    try:
      from lmjax.serve.app import build_app
      from lmjax.serve.audit import Audit
      from lmjax.serve.keys import Keys, read_keys
    except ImportError:
      raise UserError(_EXTRA) from None
    searcher = self._open_index()
    keys = Keys(read_keys(Path(self.api_keys)) if self.api_keys else [], self.limits)
    with _listening(self.host, self.port) as sock:
      service = self.make_service(self.limits, self.name, read_moderation(self.moderation))
      audit = Audit(workdir / 'audit.jsonl', self.audit_text)
      desk = self._open_desk(service, workdir)
      app = build_app(service, keys=keys, audit=audit, local=local, searcher=searcher, desk=desk)
      host = f'[{self.host}]' if ':' in self.host else self.host
      address = f'http://{host}:{sock.getsockname()[1]}'
      warming = threading.Thread(target=_warm, args=(service, address), daemon=True)
      try:
        _serve_until_told(app, sock, warming, self.drain_seconds)
      finally:
        service.close(self.drain_seconds)
        if warming.is_alive():
          warming.join()  # Python must not end while XLA compiles in a thread
        audit.close()
    if service.engine.failure is not None:
      raise service.engine.failure
    counts = service.engine.counts
    print(f'answered {counts.added_tokens:,} tokens in {counts.steps:,} steps', flush=True)
    return {'model': service.name, 'address': address, 'counts': vars(counts)}

  def _open_desk(self, service: 'Service', workdir: Path) -> 'Desk | None':
    """Where /ads makes advertisements; None without Pillow, of which /ads then tells."""
    from lmjax.serve.ads import Desk

    if importlib.util.find_spec('PIL') is None:
      return None
    maker = Maker(self.ads, lambda text: service.refuses(text, 'output'))
    return Desk(workdir / 'creatives', maker)

  def _open_index(self) -> 'Searcher | None':
    if not self.index:
      return None
    from lmjax.search.searcher import Searcher

    searcher = Searcher(Path(self.index), checkpoint=self.search_checkpoint)
    print(f'{searcher.count:,} posts of {self.index} can be searched', flush=True)
    return searcher


class ApiKey(Task):
  """Makes a key for the server: shown once, and kept as a hash."""

  name: str = leaf('', 'Whose it is; the audit log and limits go by it.')
  api_keys: str = leaf('api_keys.jsonl', 'The file that gets its hash.')

  def run(self, workdir: Path) -> Report:
    """Prints the key; the report does not hold it."""
    need('name', self.name, 'NAME, whose key it is')
    try:
      from lmjax.serve.keys import add_key
    except ImportError:
      raise UserError(_EXTRA) from None
    print(add_key(Path(self.api_keys), self.name))
    print(f'shown this once; its hash is in {self.api_keys}: serve with --api_keys={self.api_keys}')
    return {'name': self.name, 'api_keys': self.api_keys}


def default_name(checkpoint: str, loaded: Loaded) -> str:
  """The last part of a checkpoint's name: `smollm2-135m-instruct`, `posts_tiny`."""
  last = checkpoint.rstrip('/').rpartition('/')[2]
  return last.removesuffix('.gguf') or loaded.path.name


def read_moderation(name: str) -> 'Moderation | None':
  """The function `package.module:function`, or a trained classifier's; UserError where there is none."""
  if not name:
    return None
  if at(name).is_dir():
    from lmjax.ads.review import load_classifier

    return load_classifier(name, 'moderation').moderate
  module, _, function = name.partition(':')
  try:
    found = getattr(importlib.import_module(module), function, None)
  except (ImportError, ValueError) as error:
    raise UserError(f'--moderation={name}: {error}: pass package.module:function') from None
  if not callable(found):
    raise UserError(f'--moderation={name}: there is no such function: pass package.module:function')
  return found  # type: ignore[return-value]


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
  """A socket, bound before the model is loaded, so that a port in use is told at once."""
  family = socket.AF_INET6 if ':' in host else socket.AF_INET
  with socket.socket(family, socket.SOCK_STREAM) as sock:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
      sock.bind((host, port))
    except OSError as error:
      raise UserError(
        f'--host={host} --port={port} cannot be listened at ({error.strerror}): pass another --port, '
        'or 0 for one that is free'
      ) from None
    yield sock


def _warm(service: 'Service', address: str) -> None:
  """Makes ready in the background (/health answers meanwhile, /ready says 503); ends all if it fails."""
  try:
    for done, of in service.warm():
      print(f'\rcompiling {done} of {of}', end='\n' if done == of else '', flush=True)
    if service.ready:
      print(
        f'{service.name} is served at {address} (API: {address}/v1). Ctrl-C ends it.', flush=True
      )
      service.engine.wait()
  except BaseException as error:
    service.engine.failure = error
  if service.engine.failure is not None:
    signal.raise_signal(signal.SIGTERM)


def _serve_until_told(
  app: Any, sock: socket.socket, warming: threading.Thread, drain_seconds: float
) -> None:
  import uvicorn

  class Server(uvicorn.Server):
    """Stops at signals, and leaves the exit code to the task."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
      kept = [(s, signal.signal(s, self.stop)) for s in (signal.SIGTERM, signal.SIGINT)]
      try:
        yield
      finally:
        for number, handler in kept:
          signal.signal(number, handler)

    def stop(self, *_: Any) -> None:
      if self.should_exit:  # told twice: at once
        self.force_exit = True
      else:
        print('\nfinishing what is under way ...', flush=True)
      self.should_exit = True

  config = uvicorn.Config(
    app,
    log_level='warning',
    access_log=False,
    server_header=False,
    lifespan='off',
    timeout_graceful_shutdown=int(drain_seconds) + 1,
  )
  warming.start()
  asyncio.run(Server(config).serve(sockets=[sock]))
