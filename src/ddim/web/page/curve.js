// The noise schedule as a curve, with the nodes of a sampler on it.

import { h, name, s } from "./dom.js";
import { say } from "./words.js";

const HEIGHT = 190;
const EDGE = { left: 34, right: 12, top: 10, bottom: 34 };

/** The curve; data runs from T on the left to 0 on the right, as sampling does. */
export function curve() {
  const svg = s("svg", { class: "curve", role: "img" });
  const element = h("div", { class: "figure" }, svg);
  let schedule = null;
  let nodes = [];
  let step = null;
  new ResizeObserver(draw).observe(element);

  function draw() {
    const width = Math.floor(element.clientWidth);
    if (!schedule || width < 100) return;
    const T = schedule.alpha.length - 1;
    const x = (k) => EDGE.left + (1 - k / T) * (width - EDGE.left - EDGE.right);
    const y = (value) => EDGE.top + (1 - value) * (HEIGHT - EDGE.top - EDGE.bottom);
    svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    svg.setAttribute("width", width);
    svg.setAttribute("height", HEIGHT);
    svg.replaceChildren(
      ...axes(T, x, y, width),
      line(schedule.alpha, x, y, "signal"),
      line(schedule.sigma, x, y, "noise"),
      ...nodes.map((k) => s("circle", {
        class: "node", cx: x(k), cy: y(schedule.alpha[k]), r: nodes.length > 60 ? 1.5 : 3,
      })),
      ...nodes.map((k) => s("line", {
        class: "tick", x1: x(k), x2: x(k), y1: y(0), y2: y(0) + 5,
      })),
      ...here(x, y),
      ...legend(x, y, T),
    );
  }

  function here(x, y) {
    if (!step) return [];
    const at = (key, level, k) => [x(k ?? nearest(level.alpha)), y(level[key])];
    return ["alpha", "sigma"].flatMap((key) => {
      const [x1, y1] = at(key, step.level, step.node);
      const [x2, y2] = at(key, step.to, step.to.node);
      return [
        s("line", { class: `jump ${key}`, x1, y1, x2, y2 }),
        s("circle", { class: `from ${key}`, cx: x1, cy: y1, r: 6 }),
        s("circle", { class: `to ${key}`, cx: x2, cy: y2, r: 4.5 }),
      ];
    });
  }

  /** The node whose signal is nearest, for stages between two nodes. */
  function nearest(alpha) {
    return schedule.alpha.reduce(
      (best, value, k) => (Math.abs(value - alpha) < Math.abs(schedule.alpha[best] - alpha) ? k : best), 0);
  }

  function legend(x, y, T) {
    const k = Math.round(0.93 * T);
    return [
      s("text", { class: "signal", x: x(k), y: y(schedule.alpha[k]) - 12 }, say("steps.signal")),
      s("text", { class: "noise", x: x(k), y: y(schedule.sigma[k]) + 20 }, say("steps.noise")),
    ];
  }

  return {
    element,
    draw,
    /** The schedule of a model. */
    take(given) {
      schedule = given;
      nodes = [];
      step = null;
      draw();
    },
    /** The nodes of a sampler. */
    mark(given) {
      nodes = given;
      draw();
    },
    /** The step that is looked at. */
    point(frame) {
      step = frame;
      name(svg, "steps.curve.label", {
        from: frame.node ?? "…", to: frame.to.node ?? "…",
        alpha: frame.level.alpha.toFixed(4), toAlpha: frame.to.alpha.toFixed(4),
      });
      draw();
    },
  };
}

function axes(T, x, y, width) {
  const parts = [0, 0.5, 1].flatMap((value) => [
    s("line", { class: "grid", x1: EDGE.left, x2: width - EDGE.right, y1: y(value), y2: y(value) }),
    s("text", { class: "tick-text end", x: EDGE.left - 6, y: y(value) + 4 }, String(value)),
  ]);
  for (const k of [T, Math.round(T / 2), 0]) {
    const end = k === T ? "start" : k === 0 ? "end" : "middle";
    parts.push(s("text", { class: `tick-text ${end}`, x: x(k), y: y(0) + 18 }, String(k)));
  }
  parts.push(s("text", { class: "tick-text middle", x: x(T / 4), y: y(0) + 30 }, say("steps.axis")));
  return parts;
}

function line(values, x, y, kind) {
  const path = values.map((value, k) => `${x(k).toFixed(1)},${y(value).toFixed(1)}`).join(" L");
  return s("path", { class: `line ${kind}`, d: `M${path}` });
}
