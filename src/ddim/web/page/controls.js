// The controls that several views share: a sampler's, a seed's, a class label's.

import { choice, field, h, refill } from "./dom.js";
import { share, whole } from "./address.js";
import { say } from "./words.js";

const COUNTS = [1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 75, 100, 150, 200, 250, 500, 1000];

/** A slider over numbers of steps, up to T; a number that a link names joins them. */
export function stepsSlider(key, changed) {
  let counts = COUNTS;
  const output = h("span", { class: "value" });
  const input = h("input", {
    type: "range", min: 0, max: counts.length - 1, on: { input: () => show(true) },
  });
  const element = field(key, input, output);

  function show(told) {
    output.textContent = counts[input.value];
    input.setAttribute("aria-valuetext", say("steps.value", { n: counts[input.value] }));
    if (told) changed();
  }

  return {
    element,
    get value() {
      return counts[input.value];
    },
    /** Offers the counts up to a limit, and takes one. */
    offer(limit, value) {
      const wanted = Math.min(Math.max(value, 1), limit);
      const all = new Set([...COUNTS.filter((n) => n < limit), limit, wanted]);
      counts = [...all].sort((a, b) => a - b);
      input.max = counts.length - 1;
      input.value = counts.indexOf(wanted);
      show(false);
    },
  };
}

/** A sampler: method, steps, η, order, nodes, those that the method has. */
export function samplerControls(changed) {
  let methods = [];
  let T = 1;
  const method = choice([["ddim"]], { on: { change: () => { orders(); adapt(true); } } });
  const steps = stepsSlider("steps", () => adapt(true));
  const etaText = h("span", { class: "value" });
  const eta = h("input", {
    type: "range", min: 0, max: 1, step: 0.05, value: 0, on: { input: () => adapt(true) },
  });
  const order = choice([["", "order.default"]], { on: { change: () => adapt(true) } });
  const nodes = choice([["uniform"]], { on: { change: () => adapt(true) } });
  const fields = { eta: field("eta", eta, etaText), order: field("order", order) };
  const elements = [
    field("method", method), steps.element, fields.eta, fields.order, field("nodes", nodes),
  ];

  function chosen() {
    return methods.find((entry) => entry.name === method.value) ?? { name: method.value };
  }

  function orders() {
    refill(order, [["", "order.default"], ...(chosen().orders ?? []).map((n) => [n])]);
  }

  function adapt(told) {
    const entry = chosen();
    fields.eta.hidden = !entry.eta;
    fields.order.hidden = !entry.orders?.length;
    method.title = entry.summary ?? "";
    etaText.textContent = Number(eta.value).toFixed(2);
    if (told) changed();
  }

  return {
    elements,
    /** Takes what a model offers. */
    offer(info, size, settings) {
      T = size;
      methods = info.methods.filter((entry) => !entry.needs && !entry.program);
      refill(method, methods.map((entry) => [entry.name]));
      refill(nodes, info.nodes.map((family) => [family]));
      this.take(settings);
    },
    /** Takes the settings of an address. */
    take({ method: given = "ddim", steps: count, eta: noise, order: degree, nodes: family }) {
      method.value = methods.some((entry) => entry.name === given) ? given : methods[0]?.name;
      steps.offer(T, whole(count, 1, T, Math.min(50, T)));
      eta.value = share(noise, 0);
      orders();
      order.value = [...order.options].some((o) => o.value === degree) ? degree : "";
      nodes.value = [...nodes.options].some((o) => o.value === family) ? family : "uniform";
      if (!nodes.value) nodes.selectedIndex = 0;
      adapt(false);
    },
    get settings() {
      const entry = chosen();
      return {
        method: method.value,
        steps: steps.value,
        eta: entry.eta && Number(eta.value) ? Number(eta.value) : null,
        order: entry.orders?.length && order.value ? Number(order.value) : null,
        nodes: nodes.value === "uniform" ? null : nodes.value,
      };
    },
    /** Its spelling, as `ddim.Sampler.parse` reads it. */
    get sampler() {
      const { method: given, steps: count, eta: noise, order: degree, nodes: family } = this.settings;
      const parts = [given];
      if (noise) parts.push(`eta=${noise}`);
      if (degree && degree <= count) parts.push(`order=${degree}`);
      parts.push(`steps=${count}`);
      if (family) parts.push(`nodes=${family}`);
      return parts.join(":");
    },
  };
}

/** A whole number with its limits. */
export function number(key, low, high, value, changed) {
  const input = h("input", {
    type: "number", min: low, max: high, step: 1, value, inputmode: "numeric",
    on: { change: () => { tidy(); changed(); } },
  });
  function tidy() {
    input.value = whole(input.value, Number(input.min), Number(input.max), value);
  }
  return {
    element: field(key, input),
    input,
    get value() {
      return whole(input.value, Number(input.min), Number(input.max), value);
    },
    set value(given) {
      input.value = given;
    },
  };
}

/** A seed, and a button for another. */
export function seedControl(key, changed) {
  const seed = number(key, 0, 2 ** 31 - 1, 0, changed);
  const another = h("button", {
    type: "button", class: "icon", label: "seed.another",
    on: {
      click: () => {
        seed.value = Math.floor(Math.random() * 10_000);
        changed();
      },
    },
  }, "⚄");
  seed.element.append(another);
  seed.element.classList.add("with-button");
  return seed;
}

/** A class label, for models that have them. */
export function labelControl(turn, changed) {
  const select = choice([], { on: { change: changed } });
  const element = field("label", select);
  element.hidden = true;
  return {
    element,
    offer(classes, value) {
      element.hidden = !classes;
      const own = Array.from({ length: classes ?? 0 }, (_, i) => [i]);
      refill(select, turn ? [["turn", "label.turn"], ...own] : own);
      if ([...select.options].some((o) => o.value === value)) select.value = value;
      else select.selectedIndex = 0;
    },
    get setting() {
      return element.hidden ? null : select.value;
    },
    /** The labels of n images; null where the model knows none. */
    labels(n) {
      if (element.hidden) return null;
      const classes = select.options.length - (turn ? 1 : 0);
      return Array.from({ length: n }, (_, i) =>
        select.value === "turn" ? i % classes : Number(select.value),
      );
    },
  };
}
