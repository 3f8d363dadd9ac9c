"""Models that are there already, trained here or published: scored, and written for others."""

from lmjax.core.registry import experiment
from lmjax.train.chat_eval import ChatEval
from lmjax.train.export import ExportHf, ExportPeft
from lmjax.train.score import Score


@experiment
def score() -> Score:
  """Log-probabilities of texts: --checkpoint=RUN --texts=FILE.jsonl --output=FILE.jsonl."""
  return Score()


@experiment
def export_hf() -> ExportHf:
  """Write a model as a Hugging Face folder: --checkpoint=RUN --output=DIR."""
  return ExportHf()


@experiment
def chat_eval() -> ChatEval:
  """Measure a model, alone or beside another: --checkpoint=RUN [--against=RUN]."""
  return ChatEval()


@experiment
def export_peft() -> ExportPeft:
  """Write what LoRA learnt in peft's format: --checkpoint=RUN --output=DIR."""
  return ExportPeft()
