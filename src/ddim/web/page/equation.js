// Equation 12 of the paper, and a row of the sampler's table beside it.

import { h, m, tell } from "./dom.js";

const PLACES = 6;

/** x_s = √ᾱ_s·x̂0 + √(1-ᾱ_s-σ²)·ε + σ·z, with numbers below where there are any. */
function formula(level, row) {
  const symbols = m("mrow",
    sub("x", "s"), m("mo", "="),
    m("msqrt", bar("s")), hat0(), m("mo", "+"),
    m("msqrt", m("mn", "1"), m("mo", "−"), bar("s"), m("mo", "−"),
      m("msup", m("mi", "σ"), m("mn", "2"))),
    m("mi", "ε"), m("mo", "+"), m("mi", "σ"), m("mi", "z"));
  const lines = [symbols];
  if (level && row) {
    lines.push(m("mrow",
      sub("x", String(level.to)), m("mo", "="),
      m("mn", row.x0.toFixed(4)), hat0(), m("mo", "+"),
      m("mn", row.eps.toFixed(4)), m("mi", "ε"), m("mo", "+"),
      m("mn", row.noise.toFixed(4)), m("mi", "z")));
  }
  return lines.map((line) => {
    const math = m("math", line);
    math.setAttribute("display", "block");
    return math;
  });
}

function sub(base, below) {
  return m("msub", m("mi", base), /^\d+$/.test(below) ? m("mn", below) : m("mi", below));
}

function bar(below) {
  return m("msub", m("mover", m("mi", "α"), m("mo", "¯")), m("mi", below));
}

function hat0() {
  return m("msub", m("mover", m("mi", "x"), m("mo", "^")), m("mn", "0"));
}

/** The equation, and a table of the row's terms beside its. */
export function equation() {
  const shown = h("div", { class: "formula" }, ...formula());
  const body = h("tbody");
  const remark = h("p", { class: "note" });
  const element = h(
    "section", { class: "equation" },
    h("h3", { say: "steps.row" }), shown,
    h("div", { class: "scroll" },
      h("table", {},
        h("thead", {}, h("tr", {}, ...["term", "number", "equation"].map((key) =>
          h("th", { scope: "col", say: `steps.${key}` })))),
        body)),
    remark,
    h("p", { class: "note", say: "steps.paper" }),
  );

  return {
    element,
    /** Shows the row of a frame. */
    show({ row, equation12: paper, to }) {
      shown.replaceChildren(...formula(paper && { to: to.node ?? "s" }, paper));
      const terms = [
        ...row.states.map(([age, value]) => ["state", age, value, null]),
        ...row.x0.map(([age, value]) => ["x0", age, value, paper?.x0]),
        ...row.eps.map(([age, value]) => ["eps", age, value, paper?.eps]),
        ["noise", null, row.noise, paper?.noise],
      ];
      for (const kind of ["x0", "eps"]) {
        if (paper && !row[kind].length) terms.push([kind, 0, 0, paper[kind]]);
      }
      body.replaceChildren(...terms.map(([kind, age, value, other]) =>
        h("tr", {},
          h("th", { scope: "row", say: termKey(kind, age), with: { age } }),
          h("td", { class: "number" }, Number(value).toFixed(PLACES)),
          h("td", { class: "number" }, other === null || other === undefined
            ? "–" : Number(other).toFixed(PLACES)))));
      if (!paper) return tell(remark, "steps.none");
      const differences = terms
        .filter(([, , , other]) => other !== null && other !== undefined)
        .map(([, , value, other]) => Math.abs(value - other));
      const most = Math.max(...differences);
      return tell(remark, most ? "steps.agree" : "steps.same", { difference: scientific(most) });
    },
  };
}

function termKey(kind, age) {
  if (kind === "noise") return "steps.term.noise";
  return age ? `steps.term.${kind}` : `steps.term.${kind}.0`;
}

/** A small number with a power of ten, without one where it is 0. */
export function scientific(value) {
  if (!value) return "0";
  const [mantissa, power] = value.toExponential(0).split("e");
  const raised = [...power.replace("+", "")].map((c) => (c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[c]));
  return `${mantissa}·10${raised.join("")}`;
}
