// The address: #VIEW?key=value…, which restores what is seen.

/** The view, the settings and the language that an address names. */
export function readAddress(hash = location.hash) {
  const [view, query = ""] = hash.replace(/^#/, "").split("?");
  return { view, settings: Object.fromEntries(new URLSearchParams(query)) };
}

/** The address of a view with its settings; what is null is left out. */
export function addressOf(view, settings) {
  const query = new URLSearchParams();
  for (const [key, value] of Object.entries(settings)) {
    if (value !== null && value !== undefined && value !== "") query.set(key, value);
  }
  const text = query.toString();
  return text ? `#${view}?${text}` : `#${view}`;
}

/** A whole number of an address within its limits, or what stands in for it. */
export function whole(text, low, high, otherwise) {
  const value = Number(text);
  if (text === undefined || text === "" || !Number.isInteger(value)) return otherwise;
  return Math.min(Math.max(value, low), high);
}

/** A share in [0, 1], or what stands in for it. */
export function share(text, otherwise) {
  const value = Number(text);
  if (text === undefined || text === "" || !Number.isFinite(value)) return otherwise;
  return Math.min(Math.max(value, 0), 1);
}
