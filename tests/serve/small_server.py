"""A server of a tiny model, on a port of this machine."""

import contextlib
import threading
import time
from pathlib import Path

import openai
import uvicorn
from small_models import random_params

from lmjax.data.tokenizer import train
from lmjax.generate.continuous import Batching
from lmjax.generate.sampler import Sampler
from lmjax.interop.load import Loaded
from lmjax.models.transformer import Decoder
from lmjax.serve.app import build_app
from lmjax.serve.audit import Audit
from lmjax.serve.keys import Keys
from lmjax.serve.limits import Limits
from lmjax.serve.service import Service

TOKENIZER = train(['{"name": "look", "arguments": {}} user assistant system <tool_call>'] * 3, 320)
MODEL = Decoder(
  vocab=TOKENIZER.vocab, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=48, layout='list'
)
TEMPLATE = (
  '{% if tools %}tools:{{ tools | tojson }}<|end|>{% endif %}'
  "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content or '' }}"
  '{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}<|end|>{% endfor %}'
  '{% if add_generation_prompt %}<|start|>assistant\n{% endif %}'
)

TIMEOUT = 300.0  # seconds: what takes milliseconds may take some on a busy machine, and httpx gives up after 5
SHORT = '{{ messages[-1].content[:8] }}'  # a template for long messages, of which the answers alone matter


def make_loaded(template, params):
  ends = (TOKENIZER.end,)
  params = random_params(MODEL) if params is None else params
  return Loaded(MODEL, params, TOKENIZER, Path('tiny'), 0, template, ends, None)


def make_service(limits=None, batching=None, template=TEMPLATE, params=None, **more):
  batching = batching or Batching(rows=4, context=256, chunk=8, queue=8, lookup=2)
  return Service(
    make_loaded(template, params),
    name='tiny',
    batching=batching,
    limits=limits or Limits(answer_tokens=200),
    sampler=Sampler(temperature=1.0),
    **more,
  )


@contextlib.contextmanager
def serving(service, folder, keys=(), local=True, warm=True, text=False, **more):
  """The address of a running server, and its audit log is `folder`/audit.jsonl; `more`: of `build_app`."""
  audit = Audit(folder / 'audit.jsonl', text)
  keys = Keys(list(keys), service.limits)
  app = build_app(service, keys=keys, audit=audit, local=local, **more)
  if warm:
    list(service.warm())
  config = uvicorn.Config(app, port=0, log_level='critical', lifespan='off', access_log=False)
  server = uvicorn.Server(config)
  thread = threading.Thread(target=server.run)
  thread.start()
  try:
    while not server.started:
      time.sleep(0.01)
    yield f'http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}'
  finally:
    server.should_exit = True
    thread.join()
    if warm:
      service.close(0.0)
    audit.close()


def make_client(address, key='none'):
  return openai.OpenAI(base_url=f'{address}/v1', api_key=key, max_retries=0)
