"""llama-cpp-python, a request at a time on all cores: a side of lmjax's bench_serve.

usage: python tools/bench/peers/serve_llama.py FILE.gguf
"""

import os
import sys

import api
from llama_cpp import Llama
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

CORES = len(os.sched_getaffinity(0))
model = Llama(sys.argv[1], n_ctx=2048, n_threads=CORES, n_threads_batch=CORES, verbose=False)
ENDS = [model.token_eos()]
template = Jinja2ChatFormatter(
  model.metadata['tokenizer.chat_template'], eos_token='', bos_token=''
)


def generate(texts, room, tell):
  # It keeps the keys and values of the beginning that this prompt shares with the last.
  prompt = model.tokenize(texts[0].encode(), add_bos=False, special=True)
  for _, token in zip(range(room), model.generate(prompt, temp=0.0)):
    tell(0, token)
    if token in ENDS:
      return


def render(messages):
  return template(messages=messages).prompt


def decode(tokens):
  return model.detokenize(tokens).decode('utf-8', 'replace')


api.run(api.Peer(1, ENDS, render, decode, generate))
