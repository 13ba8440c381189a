// A job of a view: one at a time, its phase where all can see it, told once for each change.

import { h, tell } from "./dom.js";
import { job } from "./server.js";

/**
 * The line that says how a view stands, and its button to cancel.
 *
 * The phase stands in the element's data-phase: idle, loading, asking, waiting, running, done,
 * cancelled, busy, offline or failed.
 */
export class Task {
  constructor(app) {
    this.app = app;
    this.line = h("p", { class: "status", role: "status" });
    this.stop = h("button", {
      type: "button", say: "cancel", hidden: true, on: { click: () => this.cancel() },
    });
    this.element = h("div", { class: "task" }, this.line, this.stop);
    this.controller = null;
    this.phase("idle", "");
  }

  get running() {
    return this.controller !== null;
  }

  phase(name, key = `status.${name}`, values = {}) {
    this.element.dataset.phase = name;
    this.stop.hidden = !["loading", "asking", "waiting", "running"].includes(name);
    tell(this.line, key, values);
  }

  cancel() {
    if (!this.controller) return;
    const focused = document.activeElement === this.stop;
    this.controller.abort();
    this.controller = null;
    this.phase("cancelled");
    if (focused) this.after?.focus();
  }

  /**
   * Runs a job to its end; a job that runs is cancelled for it.
   *
   * @param on by event, a function of its data.
   * @returns the data of `done`, or null where it did not come to that.
   */
  async run(path, body, on = {}) {
    this.controller?.abort();
    const controller = new AbortController();
    this.controller = controller;
    this.phase("asking");
    try {
      const done = await this.follow(path, body, on, controller.signal);
      if (controller !== this.controller) return null;
      this.controller = null;
      if (done) {
        const key = done.seconds === undefined ? "status.ready" : "status.done";
        this.phase("done", key, { seconds: Number(done.seconds ?? 0).toFixed(1) });
      } else this.phase("cancelled");
      return done;
    } catch (trouble) {
      if (controller !== this.controller || controller.signal.aborted) return null;
      this.controller = null;
      this.fail(trouble);
      return null;
    }
  }

  async follow(path, body, on, signal) {
    let done = null;
    try {
      for await (const [name, data] of job(path, body, signal)) {
        if (signal.aborted) return null;
        if (name === "queued") this.phase("waiting", "status.waiting", data);
        else if (name === "start") this.phase("running");
        if (name === "done") done = data;
        on[name]?.(data);
      }
    } catch (trouble) {
      if (trouble.code !== "loading" || signal.aborted) throw trouble;
      this.phase("loading");
      await this.app.loaded(body.model, signal);
      return this.follow(path, body, on, signal);
    }
    return done;
  }

  fail(trouble) {
    if (trouble.code === "busy") this.phase("busy", "status.busy", { text: trouble.message });
    else if (trouble.code === "offline") this.phase("offline");
    else this.phase("failed", "status.failed", { text: trouble.message });
  }
}

/** The data of a job's `done`, for jobs that need no line of their own. */
export async function once(app, path, body, signal) {
  try {
    for await (const [name, data] of job(path, body, signal)) {
      if (name === "done") return data;
    }
    return null;
  } catch (trouble) {
    if (trouble.code !== "loading") throw trouble;
    await app.loaded(body.model, signal);
    return once(app, path, body, signal);
  }
}

/** Jobs of which only the newest matters: one is in flight, the newest of the others waits. */
export class Newest {
  constructor(app, failed) {
    this.app = app;
    this.failed = failed;
    this.waiting = null;
    this.busy = false;
    this.controller = new AbortController();
  }

  /** Asks; `show` gets what `done` says. */
  want(path, body, show) {
    this.waiting = { path, body, show };
    if (!this.busy) this.turn();
  }

  async turn() {
    this.busy = true;
    const { signal } = this.controller;
    while (this.waiting && !signal.aborted) {
      const { path, body, show } = this.waiting;
      this.waiting = null;
      try {
        const done = await once(this.app, path, body, signal);
        if (done && !signal.aborted) show(done);
      } catch (trouble) {
        if (!signal.aborted) this.failed(trouble);
        if (!signal.aborted) this.waiting = null;
      }
    }
    if (!signal.aborted) this.busy = false;
  }

  /** Forgets what is in flight and what waits. */
  stop() {
    this.controller.abort();
    this.controller = new AbortController();
    this.waiting = null;
    this.busy = false;
  }
}
