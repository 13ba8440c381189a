// How to get what is seen without this page: as a command, as Python, as a link.

import { h, tell } from "./dom.js";

/** Buttons that copy; `give(ways)` says what, null takes it away. */
export function copier(link, lane = null) {
  const told = h("p", { class: "told", role: "status" });
  const text = h("textarea", { class: "selected", readonly: true, hidden: true, rows: 4, label: "copy.cannot" });
  let ways = null;

  async function copy(what) {
    try {
      await navigator.clipboard.writeText(what);
      text.hidden = true;
      tell(told, "copy.done");
    } catch {
      text.value = what;
      text.hidden = false;
      text.focus();
      text.select();
      tell(told, "copy.cannot");
    }
    setTimeout(() => {
      if (text.hidden) tell(told, "");
    }, 3000);
  }

  const command = h("button", {
    type: "button", class: "small", say: "copy.command", disabled: true,
    on: { click: () => copy(ways.command) },
  });
  const python = h("button", {
    type: "button", class: "small", say: "copy.python", disabled: true,
    on: { click: () => copy(ways.python) },
  });
  const buttons = [command, python];
  if (link) {
    buttons.push(
      h("button", {
        type: "button", class: "small", say: "copy.link",
        on: { click: () => copy(new URL(link(), location.href).href) },
      }),
    );
  }
  if (lane) {
    for (const button of [command, python]) {
      button.setAttribute("aria-describedby", lane);
    }
  }
  const element = h("div", { class: "ways" }, ...buttons, told, text);

  return {
    element,
    give(given) {
      ways = given;
      for (const [button, text] of [[command, given?.command], [python, given?.python]]) {
        button.disabled = !text;
        button.title = text ?? "";
      }
    },
  };
}
