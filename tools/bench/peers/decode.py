"""transformers' generate on a Llama of random weights: one side of lmjax's bench_decode.

usage: python tools/bench/peers/decode.py '{"shape": {"vocab": 32000, "width": 768, "layers": 12, "heads": 12,
"kv_heads": 12, "head_dim": 64, "mlp": 2048}, "dtype": "float32", "cases": [{"name": "b1", "batch": 1,
"prompt": 32, "tokens": 32}]}'. A case of one token is a prefill. Greedy, with transformers' own cache.
"""

import json
import sys
import time
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def build(shape: dict[str, int], dtype: str) -> Any:
  """The decoder of `shape`, in the names of lmjax's Decoder; tied."""
  config = LlamaConfig(
    vocab_size=shape['vocab'],
    hidden_size=shape['width'],
    intermediate_size=shape['mlp'],
    num_hidden_layers=shape['layers'],
    num_attention_heads=shape['heads'],
    num_key_value_heads=shape['kv_heads'],
    head_dim=shape['head_dim'],
    tie_word_embeddings=True,
  )
  torch.manual_seed(0)
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  return LlamaForCausalLM(config).to(device, getattr(torch, dtype)).eval()


def seconds(model: Any, prompt_BL: torch.Tensor, tokens: int) -> float:
  start = time.perf_counter()
  new = model.generate(
    prompt_BL,
    attention_mask=torch.ones_like(prompt_BL),
    min_new_tokens=tokens,
    max_new_tokens=tokens,
    do_sample=False,
    use_cache=True,
    pad_token_id=0,
  )
  assert new.cpu().shape[1] == prompt_BL.shape[1] + tokens  # a GPU has ended once it is read
  return time.perf_counter() - start


def tokens_per_second(model: Any, case: dict) -> float:
  """Of a case: new tokens after the first, or those of the prompt where one is all there is."""
  batch, prompt, tokens = case['batch'], case['prompt'], case['tokens']
  prompt_BL = torch.randint(0, model.config.vocab_size, (batch, prompt), device=model.device)
  prefill = seconds(model, prompt_BL, 1)
  if tokens == 1:
    return batch * prompt / prefill
  return batch * (tokens - 1) / (seconds(model, prompt_BL, tokens) - prefill)


def main() -> None:
  settings = json.loads(sys.argv[1])
  with torch.inference_mode():
    model = build(settings['shape'], settings['dtype'])
    turn = lambda: {case['name']: tokens_per_second(model, case) for case in settings['cases']}
    turn()
    print(json.dumps({'ready': True}), flush=True)
    for _ in sys.stdin:
      print(json.dumps(turn()), flush=True)


if __name__ == '__main__':
  main()
