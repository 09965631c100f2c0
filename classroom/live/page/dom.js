// Elements, made without HTML: anything that came over a wire is text.

export const byId = (id) => document.getElementById(id);

export function el(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== ""));
  return made;
}

export const button = (text, onclick, props = {}) => el("button", { type: "button", onclick, ...props }, text);

export function chooser(label, options, onchange, chosen = "") {
  const select = el("select", { onchange: () => onchange(select.value), "aria-label": label });
  for (const [value, text] of options) select.append(el("option", { value, selected: value === chosen }, text));
  return select;
}

// Bring a list of children up to date without touching those that are the same. What had the focus
// keeps it, in its new form.
export function show(parent, key, make) {
  const text = JSON.stringify(key);
  if (parent.shown === text) return;
  parent.shown = text;
  const focused = parent.contains(document.activeElement) ? nameOf(document.activeElement) : null;
  parent.replaceChildren(...[make()].flat().filter(Boolean));
  if (focused) [...parent.querySelectorAll("button, input, select, summary")].find((each) => nameOf(each) === focused)?.focus();
}

const nameOf = (element) =>
  element.dataset.at ?? element.dataset.bit ?? element.dataset.key ?? element.getAttribute("aria-label") ?? element.textContent;

export function claimLinks(ids) {
  return ids.flatMap((id, at) => [at ? ", " : "", el("a", { href: `#claim-${id}` }, id)]);
}
