"""Pictures the page's Search place of a running server, as docs/search.png was made.

usage: python tools/screenshot.py OUT.png QUERY [ADDRESS] [--answer]

First an index and a server, in a shell of its own:
  python -m lmjax.main --experiment=search_posts --boolq=0 --query=flu --workdir=runs/search
  python -m lmjax.main --experiment=serve --index=runs/search/index
then `python tools/screenshot.py docs/search.png 'how can older people avoid a fall'`. Needs pip install
playwright, and Debian's chromium.
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

_WIDTH, _HEIGHT = 1100, 900
_WAIT_MS = 300_000  # a model that answers on a CPU takes a minute


def picture(out: Path, query: str, address: str, answer: bool) -> None:
  """Types `query`, unfolds why the first post was found and, if asked to, waits for the model's answer."""
  with sync_playwright() as started:
    found = shutil.which('chromium') or shutil.which('chromium-browser')
    browser = started.chromium.launch(executable_path=found, args=['--no-sandbox'])
    page = browser.new_page(viewport={'width': _WIDTH, 'height': _HEIGHT})
    page.set_default_timeout(_WAIT_MS)
    page.goto(f'{address}/#search')
    page.locator('#query').fill(query)
    page.locator('.hit').first.wait_for()
    if answer:
      page.locator('#answer').click()
      page.locator('#said .help').wait_for()
    page.locator('.hit summary').first.click()
    page.locator('#query').focus()
    page.screenshot(path=out, animations='disabled', caret='hide')
    browser.close()


def main(argv: list[str]) -> None:
  given = [one for one in argv[1:] if one != '--answer']
  if not 2 <= len(given) <= 3:
    sys.exit(__doc__)
  address = given[2] if len(given) == 3 else 'http://127.0.0.1:8000'
  picture(Path(given[0]), given[1], address.rstrip('/'), '--answer' in argv)


if __name__ == '__main__':
  main(sys.argv)
