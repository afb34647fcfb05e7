// SPDX-License-Identifier: GPL-3.0-or-later
// A training as its node shows it: drawn anew from each state that the server sends (soda_core/host/training/live.py).
import { api } from "../../../scripts/api.js";
import { Chart, nearest, spark } from "./chart.js";
import { Compare } from "./compare.js";
import { duration, make, number } from "./format.js";
import { say } from "./words.js";

const RUNNING = ["preparing", "training", "finishing"];

/** Whether the run of a state still goes on. */
export const running = (state) => RUNNING.includes(state?.status);

/** What the server says beside steps, in the front end's language. */
const note = ({ note: text, note_words: { key, ...values } }) => (text && key ? say(key, values) : text);

/** What became of a run that has ended, in words. */
export function ending(state) {
  if (state.status === "failed") return state.error;
  if (state.status === "done") {
    const saved = state.saved ? say("savedAs", { name: state.saved }) : "";
    return [saved, note(state)].filter(Boolean).join("; "); // a note at the end is a warning
  }
  if (!state.saved) return say("nothingKept");
  const kept = say("keptAs", { name: state.saved, step: state.step });
  return state.kept_run ? `${kept} ${say("goOnWith", { run: state.kept_run })}` : kept;
}

function address(run) {
  return ({ filename, subfolder, type }) =>
    api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type, preview: "webp;85", run })}`);
}

export class TrainingView {
  constructor() {
    this.head = make("span", "status");
    this.facts = make("span", "facts");
    this.bar = make("div", "bar");
    this.legend = make("div", "legend");
    this.chart = new Chart((step) => this.#legend(step));
    this.empty = make("div", "empty");
    this.cards = make("div", "cards");
    this.compare = new Compare((picture) => address(this.state?.id ?? "")(picture));
    this.finish = this.#button("finish", () => this.#ask("/soda/finish", { id: this.state.id }));
    this.cancel = this.#button("cancel", () => this.#ask("/interrupt", { prompt_id: this.state.prompt }));
    this.message = make("div", "message");
    this.foot = make("div", "foot", [this.finish, this.cancel, this.message]);
    this.element = make("div", "training", [
      make("div", "head", [this.head, this.facts]),
      make("div", "rail", [this.bar]),
      this.legend,
      make("div", "plot", [this.chart.element, this.empty]),
      this.cards,
      this.compare.element,
      this.foot,
    ]);
    this.show(undefined);
  }

  /** Draw a state; undefined: nothing has been trained yet. */
  show(state) {
    if (state?.id !== this.state?.id) {
      this.asked = undefined;
      this.compare.reset();
    }
    this.state = state;
    const status = this.asked && running(state) ? this.asked : (state?.status ?? "idle");
    this.element.dataset.status = status;
    this.element.dataset.step = state?.step ?? "";
    this.head.textContent = say(`status_${status}`);
    this.facts.textContent = state ? this.#facts(state) : "";
    this.bar.style.width = state?.steps ? `${(100 * state.step) / state.steps}%` : "0";
    const curves = state?.curves ?? {};
    const { loss = [], mean = [], validation = [] } = curves;
    this.chart.draw({
      loss: { points: loss, noisy: true },
      mean: { points: mean },
      validation: { points: validation, dots: true, own: true },
    });
    this.empty.textContent = loss.length ? "" : state ? note(state) || say(`status_${status}`) : say("idle");
    this.#legend();
    this.#cards(state);
    this.compare.show(state?.pictures ?? []);
    this.#foot(state);
  }

  #facts({ step, steps, speed, left, status }) {
    const parts = steps ? [say("stepOf", { step, steps })] : [];
    if (speed && status === "training")
      parts.push(
        speed < 1 ? say("secondsPerStep", { seconds: number(1 / speed) }) : say("perSecond", { speed: number(speed) }),
        say("left", { time: duration(left) }),
      );
    return parts.join("  ·  ");
  }

  #legend(at) {
    const { curves = {} } = this.state ?? {};
    const entries = ["validation", "mean", "loss"].filter((name) => curves[name]?.length);
    this.legend.replaceChildren(
      ...entries.map((name) => {
        const points = curves[name];
        const [, value] = at === undefined ? points.at(-1) : nearest(points, at);
        const entry = make("span", `entry soda-${name}`, [say(name), make("b", "value", number(value))]);
        if (name === "validation" && points.length > 1) {
          const change = Math.round(100 * (value / points[0][1] - 1));
          entry.append(make("span", "change", `${change > 0 ? "+" : change < 0 ? "−" : "±"}${Math.abs(change)} %`));
        }
        entry.title = say(`${name}_help`);
        return entry;
      }),
    );
    if (at !== undefined) this.legend.prepend(make("span", "entry", say("atStep", { step: Math.round(at) })));
  }

  #cards(state) {
    const { rotation = [], shift = [], schedule = [] } = state?.curves ?? {};
    const rates = (state?.rates ?? []).filter(Boolean).map((rate) => number(rate, 2));
    const cards = [
      ["rotation", rotation, (value) => `${number(value)}°`],
      ["shift", shift, (value) => `${number(100 * value)} %`],
      ["schedule", schedule, () => [...new Set(rates)].join(" · ")],
    ];
    this.cards.replaceChildren(
      ...cards
        .filter(([, points]) => points.length)
        .map(([name, points, text]) => {
          const words = [make("span", "name", say(name)), make("b", "value", text(points.at(-1)[1]))];
          const card = make("div", `card soda-${name}`, [make("div", "words", words), spark(points)]);
          card.title = say(`${name}_help`);
          return card;
        }),
    );
  }

  #foot(state) {
    const going = running(state);
    this.finish.hidden = this.cancel.hidden = !going;
    this.finish.disabled = !going || Boolean(this.asked) || state.status !== "training";
    this.cancel.disabled = this.asked === "cancelling";
    this.finish.textContent = say("finish");
    this.finish.title = say("finish_help");
    this.cancel.textContent = say("cancel");
    this.cancel.title = say("cancel_help");
    this.message.textContent = going ? "" : state ? ending(state) : "";
    this.message.title = this.message.textContent;
    this.foot.hidden = !state;
  }

  #button(name, press) {
    const button = make("button", `button soda-${name}`);
    button.addEventListener("click", () => {
      this.asked = name === "finish" ? "finishing" : "cancelling";
      this.show(this.state);
      press();
    });
    return button;
  }

  async #ask(route, body) {
    const run = this.state.id;
    const answer = await api.fetchApi(route, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
    if (answer.ok || this.state?.id !== run) return;
    this.asked = undefined; // it had just ended
    this.show(this.state);
  }
}
