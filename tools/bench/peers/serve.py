"""transformers' generate behind OpenAI's API, up to 16 requests a batch: a side of lmjax's bench_serve.

usage: python tools/bench/peers/serve.py FOLDER. Greedy, streaming; whoever comes waits for the next batch.
"""

import asyncio
import json
import socket
import sys
import types

import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], padding_side='left')
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
ENDS = torch.tensor(model.generation_config.eos_token_id).view(-1).tolist()
tokenizer.pad_token = tokenizer.convert_ids_to_tokens(ENDS[0])
app, waiting = FastAPI(), asyncio.Queue()
row = lambda said: f'data: {json.dumps(said)}\n\n'


def generate(batch, tell):
  """Generates for a batch of (text, max_tokens, out), telling each `out` its tokens as they come."""
  texts, rooms, outs = zip(*batch)
  inputs = tokenizer(list(texts), return_tensors='pt', padding=True, add_special_tokens=False)
  # The first that is put is the prompt, of two dimensions.
  put = lambda ids: [tell(*pair) for pair in zip(outs, ids.tolist()) if ids.ndim == 1]
  streamer = types.SimpleNamespace(put=put, end=lambda: [tell(out, None) for out in outs])
  how = {'do_sample': False, 'pad_token_id': ENDS[0], 'streamer': streamer}
  with torch.inference_mode():
    model.generate(**inputs, **how, max_new_tokens=max(rooms))


async def work():
  loop = asyncio.get_running_loop()
  tell = lambda out, token: loop.call_soon_threadsafe(out.put_nowait, token)
  while True:
    batch = [await waiting.get()]
    while len(batch) < 16 and not waiting.empty():
      batch.append(waiting.get_nowait())
    await asyncio.to_thread(generate, batch, tell)


@app.get('/v1/models')
async def models():
  return {'data': [{'id': 'peer'}]}


@app.post('/v1/chat/completions')
async def chat(request: Request):
  body, out, tokens = await request.json(), asyncio.Queue(), []
  how = {'tokenize': False, 'add_generation_prompt': True}
  text = tokenizer.apply_chat_template(body['messages'], **how)
  waiting.put_nowait((text, body['max_tokens'], out))

  async def rows():
    said = ''
    while (token := await out.get()) is not None and token not in ENDS:
      tokens.append(token)
      text = tokenizer.decode(tokens)
      yield row({'choices': [{'delta': {'content': text[len(said) :]}}]})
      said = text
    yield row({'choices': [], 'usage': {'completion_tokens': len(tokens)}}) + 'data: [DONE]\n\n'

  return StreamingResponse(rows(), media_type='text/event-stream')


async def main(sock):
  print(f'served at http://127.0.0.1:{sock.getsockname()[1]}', flush=True)
  server = uvicorn.Server(uvicorn.Config(app, log_level='warning'))
  tasks = [asyncio.create_task(server.serve([sock])), asyncio.create_task(work())]
  await asyncio.wait(tasks, return_when='FIRST_COMPLETED')


asyncio.run(main(socket.create_server(('127.0.0.1', 0))))
