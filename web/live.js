// SPDX-License-Identifier: GPL-3.0-or-later
// Train SODA shows its training while it runs: also after the page was loaded anew, and in a second browser.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { nodeByExecutionId } from "./lib/graph.js";
import { TrainingView, ending, running } from "./lib/view.js";
import { loadWords, say } from "./lib/words.js";

const NODE = "SODATrain";
const HEIGHT = 410; // of the view, in pixels of the graph: the same before, while and after it trains

const states = new Map(); // the newest of each training, by workflow and node
const views = new WeakMap(); // by node

const key = ({ workflow, node }) => `${workflow}/${node}`;

/** Every node with a training shows it. */
function showAll() {
  for (const state of states.values()) show(state);
}

function show(state) {
  if (state.workflow !== app.rootGraph?.id) return;
  const view = views.get(nodeByExecutionId(state.node));
  if (view) view.show(state);
}

/** A word at the edge of the window, where it is seen when the node is not. */
function toast(state) {
  const kind = { done: state.note ? "warn" : "success", stopped: "info", failed: "error" }[state.status];
  if (!kind) return;
  app.extensionManager.toast.add({
    severity: kind,
    summary: say(`status_${state.status}`),
    detail: ending(state),
    life: state.status === "done" ? 6000 : 15000,
  });
}

function attach(node) {
  const view = new TrainingView();
  views.set(node, view);
  const widget = node.addDOMWidget("live", "SODA_LIVE", view.element, {
    serialize: false,
    hideOnZoom: false,
    hideInPanel: true,
    margin: 8,
    getMinHeight: () => HEIGHT,
  });
  widget.serialize = false;
  view.element.style.minHeight = `${HEIGHT - 16}px`;
  view.element.addEventListener("wheel", (event) => {
    if (!window.LiteGraph?.vueNodesMode) app.canvas.processMouseWheel(event); // there a node passes it on
  });
}

app.registerExtension({
  name: "soda.live",
  async setup() {
    const style = document.createElement("link");
    Object.assign(style, { rel: "stylesheet", href: new URL("./soda.css", import.meta.url).href });
    document.head.append(style);
    api.addEventListener("soda.training", ({ detail: state }) => {
      const before = states.get(key(state));
      states.delete(key(state)); // the newest last
      states.set(key(state), state);
      show(state);
      if (!running(state) && (before?.id !== state.id || running(before))) toast(state);
    });
    api.addEventListener("reconnected", loadStates);
    await loadWords();
    await loadStates();
  },
  nodeCreated(node) {
    if (node.comfyClass === NODE) attach(node);
  },
  afterConfigureGraph: showAll,
});

async function loadStates() {
  for (const state of await (await api.fetchApi("/soda/trainings")).json()) states.set(key(state), state);
  showAll();
}
