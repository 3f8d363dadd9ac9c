"""transformers' generate, up to 16 requests a batch: a side of lmjax's bench_serve.

usage: python tools/bench/peers/serve.py FOLDER
"""

import sys
import types

import api
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], padding_side='left')
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
ENDS = torch.tensor(model.generation_config.eos_token_id).view(-1).tolist()
tokenizer.pad_token = tokenizer.convert_ids_to_tokens(ENDS[0])


def render(messages):
  return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def generate(texts, room, tell):
  inputs = tokenizer(texts, return_tensors='pt', padding=True, add_special_tokens=False)
  # The first that is put is the prompt, of two dimensions.
  put = lambda ids: [tell(i, token) for i, token in enumerate(ids.tolist()) if ids.ndim == 1]
  streamer = types.SimpleNamespace(put=put, end=lambda: None)
  how = {'do_sample': False, 'pad_token_id': ENDS[0], 'streamer': streamer}
  with torch.inference_mode():
    model.generate(**inputs, **how, max_new_tokens=room)


api.run(api.Peer(16, ENDS, render, tokenizer.decode, generate))
