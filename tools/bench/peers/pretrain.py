"""A small language model trained for a given time as nanoGPT trains: one side of bench_time_to_loss.

nanoGPT's recipe (github.com/karpathy/nanoGPT, train.py): random windows of one stream of tokens, AdamW with
betas .9 and .95, decay .1 of matrices, gradients clipped at 1, warm-up, cosine to a tenth; the network is
llama.py's. The learning rate follows the share of `seconds` (or `steps`) that has passed.

usage: python tools/bench/peers/pretrain.py '{"tokens": "posts.npz", "seconds": 180, "steps": null, "seed": 0,
"width": 256, "layers": 3, "heads": 4, "mlp": 704, "vocab": 4096, "length": 128, "rows": 16, "lr": 2e-3,
"dtype": "float32"}'
"""

import json
import math
import sys
import time

import numpy as np
import torch
from llama import Llama

S = json.loads(sys.argv[1])
NO_LOSS = -100
data = np.load(S['tokens'])
stream = torch.from_numpy(data['train'].astype(np.int64))
torch.manual_seed(S['seed'])
longest = max(S['length'], int(data['held_out_lengths'].max()) + 1)
shape = {key: S[key] for key in ('width', 'layers', 'heads', 'mlp', 'vocab')}
model = Llama(**shape, length=longest)
split = lambda matrix: [p for p in model.parameters() if (p.ndim == 2) == matrix]
groups = [{'params': split(matrix), 'weight_decay': 0.1 * matrix} for matrix in (True, False)]
optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
forward = torch.compile(model)
autocast = torch.autocast('cpu', torch.bfloat16, enabled=S['dtype'] == 'bfloat16')
offsets = torch.arange(S['length'] + 1)


def take(share):
  """One step, at the learning rate for the `share` of the run that has passed."""
  cosine = 0.55 + 0.45 * math.cos(math.pi * share)
  for group in optimizer.param_groups:
    group['lr'] = S['lr'] * min(share / 0.02, cosine)
  rows = stream[torch.randint(len(stream) - S['length'] - 1, (S['rows'], 1)) + offsets]
  with autocast:
    loss = forward(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())
  loss.backward()
  torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
  optimizer.step()
  optimizer.zero_grad(set_to_none=True)
  return loss.item()


@torch.no_grad()
def bits_per_byte():
  """Of each held-out post alone, from its start token to its end token."""
  nats, start, posts = 0.0, 0, []
  for length in data['held_out_lengths'].tolist():
    posts.append(data['held_out'][start : start + length])
    start += length
  posts.sort(key=len)
  for first in range(0, len(posts), 64):
    some = posts[first : first + 64]
    rows = np.full((len(some), len(some[-1]) + 1), NO_LOSS, np.int64)
    for row, post in zip(rows, some, strict=True):
      row[: len(post)] = post
    rows = torch.from_numpy(rows)
    nats += model(rows[:, :-1].clamp(min=0), rows[:, 1:], reduction='sum').item()
  return nats / math.log(2) / data['held_out_bytes'].item()


take(0.0)  # compiles; at a learning rate of zero
start, steps, share = time.monotonic(), 0, 0.0
while share < 1.0:
  take(share)
  steps += 1
  share = steps / S['steps'] if S['steps'] else (time.monotonic() - start) / S['seconds']
params = sum(p.numel() for p in model.parameters())
print(json.dumps({'trained': True, 'steps': steps, 'params': params}), flush=True)
print(json.dumps({'bits_per_byte': bits_per_byte()}), flush=True)
