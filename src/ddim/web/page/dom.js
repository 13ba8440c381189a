// Elements. Whatever a reader reads is named by a key of the tables of words, so that the
// language can change while everything else stays.

import { say } from "./words.js";

const SVG = "http://www.w3.org/2000/svg";
const MATH = "http://www.w3.org/1998/Math/MathML";

/** An HTML element: `say` and `label` are keys of words, `on` listeners, the rest attributes. */
export function h(tag, props = {}, ...children) {
  return fill(document.createElement(tag), props, children);
}

/** An SVG element. */
export function s(tag, props = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

/** A MathML element. */
export function m(tag, ...children) {
  return fill(document.createElementNS(MATH, tag), {}, children);
}

function fill(element, props, children) {
  const { on = {}, say: key, label, with: values, ...attributes } = props;
  for (const [name, listener] of Object.entries(on)) element.addEventListener(name, listener);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) {
      element.setAttribute(name, value);
    }
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  if (key) tell(element, key, values);
  if (label) name(element, label, values);
  return element;
}

/** Gives an element the text of a key. */
export function tell(element, key, values = {}) {
  element.dataset.say = key;
  element.dataset.with = JSON.stringify(values);
  const text = key ? say(key, values) : "";
  if (element.textContent !== text) element.textContent = text;
}

/** Gives an element the accessible name of a key. */
export function name(element, key, values = {}) {
  element.dataset.label = key;
  element.dataset.with = JSON.stringify(values);
  element.setAttribute("aria-label", say(key, values));
}

/** Says everything again, in the language that now holds. */
export function sayAgain(root) {
  for (const element of root.querySelectorAll("[data-say]")) {
    tell(element, element.dataset.say, JSON.parse(element.dataset.with));
  }
  for (const element of root.querySelectorAll("[data-label]")) {
    name(element, element.dataset.label, JSON.parse(element.dataset.with));
  }
}

let made = 0;

/** An id that no other element has. */
export function fresh(stem) {
  made += 1;
  return `${stem}-${made}`;
}

/** A field with its label. */
export function field(key, input, ...more) {
  input.id ||= fresh("field");
  return h("div", { class: "field" }, h("label", { for: input.id, say: key }), input, ...more);
}

/** A choice among values; texts are [value, key, values of the words] or [value]. */
export function choice(entries, props = {}) {
  const select = h("select", props);
  refill(select, entries);
  return select;
}

/** Gives a choice other entries and keeps what was chosen where it is still there. */
export function refill(select, entries) {
  const before = select.value;
  select.replaceChildren(
    ...entries.map(([value, key, values]) =>
      key
        ? h("option", { value, say: key, with: values })
        : h("option", { value }, String(value)),
    ),
  );
  if (entries.some(([value]) => String(value) === before)) select.value = before;
}

