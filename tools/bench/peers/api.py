"""OpenAI's API, as far as lmjax's bench_serve asks for it, in front of a peer that generates batches."""

import asyncio
import json
import socket
from collections.abc import Callable
from typing import NamedTuple

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse


class Peer(NamedTuple):
  """What answers. Greedy.

  most: requests of a batch; whoever comes waits for the next one.
  ends: tokens that end an answer.
  render: messages to the prompt's text.
  decode: tokens to text.
  generate: (texts, tokens to add at most, tell), which calls tell(row, token) as they come.
  """

  most: int
  ends: list[int]
  render: Callable
  decode: Callable
  generate: Callable


def run(peer):
  asyncio.run(_run(peer))


async def _run(peer):
  app, waiting, sock = FastAPI(), asyncio.Queue(), socket.create_server(('127.0.0.1', 0))

  @app.get('/v1/models')
  async def models():
    return {'data': [{'id': 'peer'}]}

  @app.post('/v1/chat/completions')
  async def chat(request: Request):
    body, out = await request.json(), asyncio.Queue()
    waiting.put_nowait((peer.render(body['messages']), body['max_tokens'], out))
    return StreamingResponse(_rows(peer, out), media_type='text/event-stream')

  print(f'served at http://127.0.0.1:{sock.getsockname()[1]}', flush=True)
  server = uvicorn.Server(uvicorn.Config(app, log_level='warning'))
  tasks = [asyncio.create_task(server.serve([sock])), asyncio.create_task(_work(peer, waiting))]
  await asyncio.wait(tasks, return_when='FIRST_COMPLETED')


async def _work(peer, waiting):
  loop = asyncio.get_running_loop()
  while True:
    batch = [await waiting.get()]
    while len(batch) < peer.most and not waiting.empty():
      batch.append(waiting.get_nowait())
    texts, rooms, outs = zip(*batch)
    tell = lambda i, token, outs=outs: loop.call_soon_threadsafe(outs[i].put_nowait, token)
    await asyncio.to_thread(peer.generate, list(texts), max(rooms), tell)
    for i in range(len(outs)):
      tell(i, None)


async def _rows(peer, out):
  row = lambda said: f'data: {json.dumps(said)}\n\n'
  said, tokens = '', []
  while (token := await out.get()) is not None and token not in peer.ends:
    tokens.append(token)
    text = peer.decode(tokens)
    yield row({'choices': [{'delta': {'content': text[len(said) :]}}]})
    said = text
  yield row({'choices': [], 'usage': {'completion_tokens': len(tokens)}}) + 'data: [DONE]\n\n'
