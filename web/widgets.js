// SPDX-License-Identifier: GPL-3.0-or-later
// Widgets of our nodes: shown when they matter, and numbers written as 5e-5. Both renderers draw them as the host's own.
import { app } from "../../scripts/app.js";

const CONNECTED = "(connected)"; // as soda_core/training/setting.py says it
const inputsOf = new Map(); // node type -> input -> its options, of nodes that do not show all of their widgets

app.registerExtension({
  name: "soda.widgets",

  getCustomWidgets: () => ({ SODA_NUMBER: numberWidget }),

  beforeRegisterNodeDef(nodeType, definition) {
    if (!definition.name.startsWith("SODA")) return;
    const options = inputOptions(definition);
    if (![...options.values()].some((o) => o.soda_when || o.hidden)) return;
    inputsOf.set(definition.name, options);
    follow(nodeType.prototype, "onNodeCreated", watchWidgets);
    follow(nodeType.prototype, "onConfigure", (node, saved) => {
      fillIn(node, saved);
      showWhatMatters(node);
    });
    follow(nodeType.prototype, "onConnectionsChange", showWhatMatters);
  },

  refreshComboInNodes() {
    const root = app.rootGraph ?? app.graph;
    for (const graph of [root, ...(root.subgraphs?.values() ?? [])])
      for (const node of graph.nodes) renewed(node);
  },
});

/** Lists of a node are others than before. */
export function renewed(node) {
  if (inputsOf.has(node.comfyClass)) showWhatMatters(node);
}

/** A text field for a number, which may be written as 5e-5. */
function numberWidget(node, name, [, options]) {
  const widget = node.addWidget("text", name, written(options.default), () => {}, {});
  widget.serializeValue = () => {
    const text = String(widget.value).trim();
    return text === "" || Number.isNaN(Number(text)) ? text : Number(text); // the host says what is no number
  };
  const show = () => { widget.value = written(widget.value); };
  follow(node, "onConfigure", show); // workflows of before hold numbers
  return { widget };
}

function written(value) {
  const number = Number(value);
  if (String(value).trim() === "" || Number.isNaN(number)) return String(value);
  return number !== 0 && Math.abs(number) < 0.01 ? number.toExponential() : String(number);
}

/** A workflow from before there was a widget means what the widget says it does. */
function fillIn(node, saved) {
  const said = saved?.widgets_values;
  if (!Array.isArray(said)) return; // a node that was only just made, or in a format of its own
  const options = inputsOf.get(node.comfyClass);
  const kept = (node.widgets ?? []).filter((widget) => widget.serialize !== false);
  for (const [place, widget] of kept.entries()) {
    const before = options.get(widget.name)?.soda_before;
    if (before !== undefined && place >= said.length) widget.value = before;
  }
}

function inputOptions({ input }) {
  const inputs = Object.entries({ ...input.required, ...input.optional });
  return new Map(inputs.map(([name, [, options]]) => [name, options ?? {}]));
}

function watchWidgets(node) {
  const dependent = [...inputsOf.get(node.comfyClass).values()].filter((options) => options.soda_when);
  const watched = new Set(dependent.map((options) => options.soda_when[0]));
  for (const widget of node.widgets ?? [])
    if (watched.has(widget.name)) follow(widget, "callback", () => choose(node));
  showWhatMatters(node);
}

/** A user chose something: the node grows and shrinks by what comes and goes. */
function choose(node) {
  const [, height] = node.size;
  const before = node.computeSize()[1];
  showWhatMatters(node);
  const grown = node.computeSize()[1] - before;
  if (grown) node.setSize([node.size[0], height + grown]);
}

/** Hide what does not matter now; whatever holds something else than its default is shown. */
function showWhatMatters(node) {
  const options = inputsOf.get(node.comfyClass);
  for (const widget of node.widgets ?? []) {
    // the canvas' second widget of a seed, which Nodes 2.0 draws as a button of the first
    for (const control of widget.linkedWidgets ?? []) control.hidden = control.value === "fixed";
    const { soda_when: when, soda_offers: offers, hidden, default: normal } = options.get(widget.name) ?? {};
    if (!when && !hidden) continue;
    const changed = normal !== undefined && widget.value !== normal;
    const offered = offers && widget.options.values?.some?.((value) => value.startsWith(offers));
    const shown = isLinked(node, widget.name) || (when ? matters(node, when) : changed || offered);
    widget.hidden = !shown;
    widget.options.hidden = !shown;
  }
  const least = node.computeSize()[1];
  if (node.size[1] < least) node.setSize([node.size[0], least]);
  app.canvas?.setDirty(true, true);
}

function matters(node, [name, value]) {
  if (value === CONNECTED) return isLinked(node, name);
  return node.widgets.find((widget) => widget.name === name)?.value === value;
}

function isLinked(node, name) {
  return node.inputs?.find((input) => input.name === name)?.link != null;
}

/** Call `then(this, ...)` after a method, whatever it was, with what that was called with. */
function follow(object, method, then) {
  const original = object[method];
  object[method] = function (...args) {
    const result = original?.apply(this, args);
    then(this, ...args);
    return result;
  };
}
