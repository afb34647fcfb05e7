// SPDX-License-Identifier: GPL-3.0-or-later
// A saved file appears in every list of such files at once, without pressing R and without a word about it.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { allNodes } from "./lib/graph.js";
import { renewed } from "./widgets.js";

const LISTS = {
  soda: ["SODALoadAdapter", "SODATrain", "SODATrainingSettings", "SODAStack"],
  loras: ["LoraLoader", "LoraLoaderModelOnly"],
};

let waiting; // for more files: a run may save several in a moment
const folders = new Set();
const newest = new Map(); // kind of node -> widget -> what its list offers

/** The lists among a node's inputs, by widget; those that a switch brings are named after it. */
function listsIn(input, before = "") {
  return Object.entries({ ...input?.required, ...input?.optional }).flatMap(([name, [type, options]]) => {
    const path = before + name;
    if (type === "COMFY_DYNAMICCOMBO_V3") {
      const keys = options.options.map(({ key }) => key);
      return [[path, keys], ...options.options.flatMap(({ inputs }) => listsIn(inputs, `${path}.`))];
    }
    const values = Array.isArray(type) ? type : type === "COMBO" && options?.options;
    return values ? [[path, values]] : [];
  });
}

function give(node) {
  const lists = newest.get(node.type);
  for (const widget of node.widgets ?? []) if (lists?.has(widget.name)) widget.options.values = lists.get(widget.name);
}

/** Fetch the definition of one kind of node, and give its lists to the nodes that are there. */
async function renew(kind) {
  const known = window.LiteGraph.registered_node_types[kind];
  if (!known) return;
  const definition = (await (await api.fetchApi(`/object_info/${kind}`)).json())[kind];
  newest.set(kind, new Map(listsIn(definition.input)));
  await app.registerNodeDef(kind, definition); // for nodes to come
  for (const node of allNodes()) {
    if (node.type !== kind) continue;
    give(node);
    renewed(node);
  }
}

/** What a switch brings is made of the definition that the node began with. */
function watchSwitches(node) {
  for (const widget of node.widgets ?? []) {
    if (!/(^|\.)more_\d+$/.test(widget.name) || widget.sodaWatched) continue;
    widget.sodaWatched = true;
    const turned = widget.callback;
    widget.callback = function (...args) {
      turned?.apply(this, args);
      give(node);
      watchSwitches(node);
    };
  }
}

app.registerExtension({
  name: "soda.refresh",
  setup() {
    api.addEventListener("soda.saved", ({ detail: { folder } }) => {
      folders.add(folder);
      clearTimeout(waiting);
      waiting = setTimeout(() => {
        for (const kind of [...folders].flatMap((name) => LISTS[name] ?? [])) renew(kind);
        folders.clear();
      }, 300);
    });
  },
  nodeCreated(node) {
    if (node.comfyClass !== "SODAStack") return;
    const configured = node.onConfigure; // which turns the switches of a saved graph
    node.onConfigure = function (...args) {
      configured?.apply(this, args);
      give(node);
      watchSwitches(node);
    };
    watchSwitches(node);
  },
  refreshComboInNodes(definitions) {
    for (const [kind, { input }] of Object.entries(definitions ?? {}))
      if (kind === "SODAStack") newest.set(kind, new Map(listsIn(input)));
    for (const node of allNodes()) if (node.type === "SODAStack") give(node);
  },
});
