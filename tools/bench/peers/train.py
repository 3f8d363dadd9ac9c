"""A training step of a Llama in torch: one side of lmjax's bench_train.

usage: python tools/bench/peers/train.py '{"width": 320, "layers": 8, "heads": 5, "mlp": 1024, "vocab": 8192,
"length": 256, "rows": 4, "dtype": "bfloat16", "compile": true, "seconds": 3}'
"""

import json
import sys
import time

import torch
from llama import Llama

SETTINGS = json.loads(sys.argv[1])
SHAPE = {key: SETTINGS[key] for key in ('width', 'layers', 'heads', 'mlp', 'vocab', 'length')}

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'

torch.manual_seed(0)
torch.set_float32_matmul_precision('high')  # TF32 on a GPU, as JAX has it
model = Llama(**SHAPE).to(DEVICE)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)
forward = torch.compile(model) if SETTINGS['compile'] else model
rows = torch.randint(SHAPE['vocab'], (SETTINGS['rows'], SHAPE['length'] + 1), device=DEVICE)
tokens, targets = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def take(count):
  """Seconds of a step, over `count` of them."""
  start = time.perf_counter()
  for _ in range(count):
    with torch.autocast(DEVICE, torch.bfloat16, enabled=SETTINGS['dtype'] == 'bfloat16'):
      loss = forward(tokens, targets)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
  loss.item()  # a GPU goes on by itself until then
  return (time.perf_counter() - start) / count


take(2)
count = max(1, round(SETTINGS['seconds'] / take(1)))
print(json.dumps({'ready': True}), flush=True)
for _ in sys.stdin:
  take(1)  # not counted: lmjax/bench/train.py says why
  print(json.dumps({'seconds': take(count)}), flush=True)
