// Elements without templates: text is always text.

/** An element with attributes, listeners (onclick: f) and children (elements or texts). */
export function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, '');
    else if (value !== false && value !== null) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

/** Has the browser save a text, or a blob, as a file. */
export function download(name, content) {
  const blob = content instanceof Blob ? content : new Blob([content], { type: 'application/jsonl' });
  const url = URL.createObjectURL(blob);
  make('a', { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
