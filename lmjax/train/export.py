"""The task that writes a model as a Hugging Face folder."""

from pathlib import Path

from lmjax.core.config import leaf
from lmjax.core.errors import UserError, need
from lmjax.core.task import Report, Task
from lmjax.core.tree import count
from lmjax.interop import huggingface
from lmjax.interop.load import CHECKPOINT, load


class ExportHf(Task):
  """Writes config.json, safetensors and the tokenizer, which transformers and others load."""

  checkpoint: str = leaf('', CHECKPOINT)
  output: str = leaf('', 'The folder to write.')
  dtype: huggingface.Dtype = leaf('float32', 'Of the tensors that are written.')

  def run(self, workdir: Path) -> Report:
    """The report names the files written."""
    need('checkpoint', self.checkpoint, 'RUN, the folder of a trained run')
    need('output', self.output, 'DIR, the folder to write')
    output = Path(self.output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
      raise UserError(f'--output={output} is there already: pass a folder that is empty or new')
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
