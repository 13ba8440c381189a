// Quality against network calls: both axes logarithmic, a point opens its samples.

import { h, name, s } from "./dom.js";
import { say } from "./words.js";

const HEIGHT = 340;
// As the server names it.
const RMS = "RMS to the network's own solution";
const APART = 28; // pixels between two numbers of calls
const EDGE = { left: 48, right: 18, top: 26, bottom: 46 };

/** The plot; `open` is called with a point. */
export function plot(open) {
  const svg = s("svg", { class: "plot", role: "group" });
  const element = h("div", { class: "figure" }, svg);
  const legend = h("ul", { class: "legend" });
  let data = null;
  let chosen = null;
  new ResizeObserver(draw).observe(element);

  function draw() {
    const width = Math.floor(element.clientWidth);
    if (!data || width < 100) return;
    const focused = svg.contains(document.activeElement) ? document.activeElement.dataset.index : null;
    const x = logarithmic(data.points.map((p) => p.calls), EDGE.left + 8, width - EDGE.right - 8);
    const y = logarithmic(data.points.map((p) => p.value), HEIGHT - EDGE.bottom - 8, EDGE.top + 8);
    svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    svg.setAttribute("width", width);
    svg.setAttribute("height", HEIGHT);
    const families = grouped(data.points).map(([family, points], i) => [kind(family, i), family, points]);
    svg.replaceChildren(
      ...grid(x, y, width, data.points),
      ...baseline(y, width),
      ...families.map(([i, , points]) => s("polyline", {
        class: `line family-${i}`, points: points.map((p) => `${x.at(p.calls)},${y.at(p.value)}`).join(" "),
      })),
      ...families.flatMap(([i, , points]) => points.map((point) => spot(point, x, y, i))),
    );
    if (focused) svg.querySelector(`[data-index="${focused}"]`)?.focus();
    legend.replaceChildren(...families.map(([i, family]) =>
      h("li", {}, mark(i), h("span", {}, family))));
    name(svg, "tradeoff.plot", { metric: metricOf(data), n: data.points.length });
  }

  function baseline(y, width) {
    if (!(data.baseline > 0) || y.at(data.baseline) > HEIGHT - EDGE.bottom) return [];
    const at = y.at(data.baseline);
    return [
      s("line", { class: "baseline", x1: EDGE.left, x2: width - EDGE.right, y1: at, y2: at }),
      s("text", { class: "tick-text end", x: width - EDGE.right, y: at - 5 },
        say("tradeoff.baseline", { value: rounded(data.baseline) })),
    ];
  }

  function spot(point, x, y, i) {
    const place = { class: `spot family-${i}`, transform: `translate(${x.at(point.calls)} ${y.at(point.value)})` };
    const element = s("g", {
      ...place, role: "button", tabindex: 0, "data-index": data.points.indexOf(point),
      "aria-pressed": String(point === chosen),
      on: {
        click: () => open(point),
        keydown: (event) => {
          if (event.key !== "Enter" && event.key !== " ") return;
          event.preventDefault();
          open(point);
        },
      },
    }, s("circle", { class: "reach", r: 12 }), shape(i));
    name(element, "tradeoff.point", values(point));
    return element;
  }

  return {
    element,
    legend,
    draw,
    take(given) {
      data = given;
      draw();
    },
    choose(point) {
      chosen = point;
      draw();
    },
  };
}

/** What is measured, in the language that holds. */
export function metricOf(data) {
  return data.metric === RMS ? say("tradeoff.rms") : data.metric;
}

/** The values of the words that name a point. */
export function values(point) {
  return {
    label: point.sampler ?? point.label, calls: point.calls, value: rounded(point.value),
    unit: metricOf({ metric: point.unit }),
  };
}

/** A figure in three digits. */
export function rounded(value) {
  return Number(value.toPrecision(3)).toString();
}

function shape(i) {
  if (i % 4 === 1) return s("rect", { x: -4.5, y: -4.5, width: 9, height: 9 });
  if (i % 4 === 2) return s("path", { d: "M0,-6 L6,0 L0,6 L-6,0 Z" });
  if (i % 4 === 3) return s("path", { d: "M0,-6 L6,5 L-6,5 Z" });
  return s("circle", { r: 5 });
}

function mark(i) {
  const svg = s("svg", { class: `family-${i}`, viewBox: "-7 -7 14 14", width: 14, height: 14, "aria-hidden": "true" });
  svg.append(shape(i));
  return svg;
}

/** Which colour and mark a family has; what calibration found has its own. */
function kind(family, i) {
  if (family === "calibrated") return 2;
  return [0, 1, 3, 4, 5][i % 5];
}

/** Points by sampler without its steps, each group in order of calls. */
function grouped(points) {
  const families = new Map();
  for (const point of points) {
    const spelled = point.sampler?.replace(/:steps=\d+/, "").replace(/:nodes=[\d-]+/, "");
    const family = spelled ?? point.label;
    if (!families.has(family)) families.set(family, []);
    families.get(family).push(point);
  }
  for (const each of families.values()) each.sort((a, b) => a.calls - b.calls);
  return [...families];
}

function logarithmic(numbers, from, to) {
  const low = Math.log(Math.min(...numbers));
  const high = Math.log(Math.max(...numbers));
  const span = high - low || 1;
  return {
    low: Math.exp(low),
    high: Math.exp(high),
    at: (value) => from + ((Math.log(value) - low) / span) * (to - from),
  };
}

function ticks({ low, high }) {
  const all = [];
  for (let power = Math.floor(Math.log10(low)); 10 ** power <= high; power += 1) {
    for (const factor of [1, 2, 5]) {
      const value = factor * 10 ** power;
      if (value >= low * 0.999 && value <= high * 1.001) all.push(Number(value.toPrecision(2)));
    }
  }
  return all;
}

/** The numbers of calls, those left out that stand too near to the one before. */
function counts(points, x) {
  const all = [...new Set(points.map((point) => point.calls))].sort((a, b) => a - b);
  let last = -APART;
  return all.filter((calls) => {
    if (x.at(calls) - last < APART) return false;
    last = x.at(calls);
    return true;
  });
}

function grid(x, y, width, points) {
  const bottom = HEIGHT - EDGE.bottom;
  return [
    ...counts(points, x).flatMap((value) => [
      s("line", { class: "grid", x1: x.at(value), x2: x.at(value), y1: EDGE.top, y2: bottom }),
      s("text", { class: "tick-text middle", x: x.at(value), y: bottom + 18 }, String(value)),
    ]),
    ...ticks(y).flatMap((value) => [
      s("line", { class: "grid", x1: EDGE.left, x2: width - EDGE.right, y1: y.at(value), y2: y.at(value) }),
      s("text", { class: "tick-text end", x: EDGE.left - 6, y: y.at(value) + 4 }, String(value)),
    ]),
    s("text", { class: "tick-text end", x: width - EDGE.right, y: HEIGHT - 8 }, say("tradeoff.calls")),
  ];
}
