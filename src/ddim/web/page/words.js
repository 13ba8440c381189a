// The words of the page: a table for each language, and which of them holds.

import { en } from "./words-en.js";
import { zh } from "./words-zh.js";

const TABLES = { en, zh };

export const LANGUAGES = [["en", "English"], ["zh", "中文"]];

let current = "en";

/** The language that a browser asks for. */
export function preferred() {
  for (const wish of navigator.languages ?? [navigator.language]) {
    const short = wish.toLowerCase().slice(0, 2);
    if (TABLES[short]) return short;
  }
  return "en";
}

/** Sets the language. */
export function speak(language) {
  current = TABLES[language] ? language : "en";
  document.documentElement.lang = current === "zh" ? "zh-Hans" : "en";
  return current;
}

/** The language that holds. */
export function spoken() {
  return current;
}

/** The text of a key, with the values in its braces. */
export function say(key, values = {}) {
  const text = TABLES[current][key] ?? en[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}
