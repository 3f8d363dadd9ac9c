"""The tasks that write a model as a Hugging Face folder, or what LoRA learnt in peft's format."""

from pathlib import Path

from lmjax.core.config import leaf
from lmjax.core.errors import UserError, need
from lmjax.core.task import Report, Task
from lmjax.core.tree import count
from lmjax.interop import huggingface, peft
from lmjax.interop.load import CHECKPOINT, load, load_terms


class ExportHf(Task):
  """Writes config.json, safetensors and the tokenizer, which transformers and others load."""

  checkpoint: str = leaf('', CHECKPOINT)
  output: str = leaf('', 'The folder to write.')
  dtype: huggingface.Dtype = leaf('float32', 'Of the tensors that are written.')

  def run(self, workdir: Path) -> Report:
    """The report names the files written."""
    need('checkpoint', self.checkpoint, 'RUN, the folder of a trained run')
    need('output', self.output, 'DIR, the folder to write')
    output = _fresh(self.output)
    loaded = load(self.checkpoint)
    files = huggingface.save(
      output,
      loaded.model,
      loaded.params,
      loaded.tokenizer,
      chat_template=loaded.chat_template,
      ends=loaded.ends,
      length=loaded.length,
      dtype=self.dtype,
    )
    parameters = count(loaded.params)
    print(f'{parameters:,} parameters written to {output}: {", ".join(files)}')
    where = {'path': str(loaded.path), 'step': loaded.step}
    return {'checkpoint': where, 'output': str(output), 'files': files, 'parameters': parameters}


class ExportPeft(Task):
  """Writes what a run with LoRA learnt as a folder that peft loads over its base."""

  checkpoint: str = leaf('', "A run's folder, one that trained LoRA.")
  output: str = leaf('', 'The folder to write.')

  def run(self, workdir: Path) -> Report:
    """The report names the files written."""
    need('checkpoint', self.checkpoint, 'RUN, the folder of a run that trained LoRA')
    need('output', self.output, 'DIR, the folder to write')
    output = _fresh(self.output)
    found = load_terms(self.checkpoint)
    files = peft.save(output, found.model, found.terms, found.lora, found.base)
    parameters = count(found.terms)
    print(f'{parameters:,} parameters written to {output}: {", ".join(files)}')
    return {'output': str(output), 'base': found.base, 'files': files, 'parameters': parameters}


def _fresh(folder: str) -> Path:
  output = Path(folder)
  if output.exists() and (not output.is_dir() or any(output.iterdir())):
    raise UserError(f'--output={output} is there already: pass a folder that is empty or new')
  return output
