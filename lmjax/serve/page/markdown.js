// Markdown as elements: HTML in it is text, and nothing of it runs or loads (marked, DOMPurify).

import { marked } from './vendor/marked.esm.js';
import DOMPurify from './vendor/purify.es.js';

const ALLOWED = {
  ALLOWED_TAGS: [
    ...['p', 'br', 'hr', 'em', 'strong', 'del', 'code', 'pre', 'blockquote', 'ul', 'ol', 'li', 'a'],
    ...['h1', 'h2', 'h3', 'h4', 'h5', 'h6', 'table', 'thead', 'tbody', 'tr', 'th', 'td'],
  ],
  ALLOWED_ATTR: ['href', 'start'],
  ALLOWED_URI_REGEXP: /^(https?|mailto):/i,
  RETURN_DOM_FRAGMENT: true,
};

const SIGNS = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' };
marked.use({ renderer: { html: ({ text }) => text.replace(/[&<>"]/g, (sign) => SIGNS[sign]) } });

/** Shows Markdown in an element; what stands in code blocks can be copied. */
export function showMarkdown(node, text) {
  const shown = DOMPurify.sanitize(marked.parse(text, { gfm: true, breaks: true }), ALLOWED);
  for (const link of shown.querySelectorAll('a')) {
    link.target = '_blank';
    link.rel = 'noopener noreferrer';
  }
  for (const block of shown.querySelectorAll('pre')) {
    const copy = document.createElement('button');
    copy.type = 'button';
    copy.className = 'copy';
    copy.textContent = 'Copy';
    const code = block.textContent;
    copy.addEventListener('click', () => navigator.clipboard?.writeText(code));
    block.prepend(copy);
    block.tabIndex = 0;
  }
  node.replaceChildren(shown);
}
