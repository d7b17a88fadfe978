// What the pages of the panel share.

export const api = '/api/v1';
export const $ = id => document.getElementById(id);
const svgNS = 'http://www.w3.org/2000/svg';
const svgTags = new Set(['svg', 'path', 'rect', 'circle', 'line', 'g']);

// el('p.cls', {attr}, child...) makes an element. Children that are null or
// false are left out; strings become text nodes: text only ever enters a page
// as text.
export function el(spec, ...rest) {
  const [tag, ...classes] = spec.split('.');
  const e = svgTags.has(tag) ? document.createElementNS(svgNS, tag) : document.createElement(tag);
  if (classes.length) e.setAttribute('class', classes.join(' '));
  if (rest[0] && rest[0].constructor === Object) {
    for (const [k, v] of Object.entries(rest.shift())) if (v != null && v !== false) e.setAttribute(k, v);
  }
  e.append(...rest.flat().filter(c => c != null && c !== false));
  return e;
}

// ask makes a request of the API. It fails with what the gateway says, with
// its code; without a code the gateway was not reached.
export async function ask(method, path, body, headers) {
  const r = await fetch(api + path, {
    method, cache: 'no-store', body: body && JSON.stringify(body),
    headers: { ...(body && { 'Content-Type': 'application/json' }), ...headers },
  });
  const v = await r.json();
  if (!r.ok) throw Object.assign(new Error(v.error), { code: v.code });
  return v;
}

// said is what a person is told of a failure.
export const said = err => err.code ? err.message : 'The gateway was not reached.';

// theme makes the button in the header switch between light and dark.
export function theme() {
  const root = document.documentElement;
  try { if (localStorage.theme) root.dataset.theme = localStorage.theme; } catch { /* private mode */ }
  $('theme').addEventListener('click', () => {
    const dark = root.dataset.theme ? root.dataset.theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
    root.dataset.theme = dark ? 'light' : 'dark';
    try { localStorage.theme = root.dataset.theme; } catch { /* private mode */ }
  });
}
