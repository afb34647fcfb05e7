// SPDX-License-Identifier: GPL-3.0-or-later
// A saved file appears in every list of such files at once, without pressing R and without a word about it.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { allNodes } from "./lib/graph.js";
import { renewed } from "./widgets.js";

const LISTS = { soda: ["SODALoadAdapter", "SODATrain", "SODAStack"], loras: ["LoraLoader", "LoraLoaderModelOnly"] };

let waiting; // for more files: a run may save several in a moment
const folders = new Set();

/** Fetch the definition of one kind of node, and give its lists to the nodes that are there. */
async function renew(kind) {
  const known = window.LiteGraph.registered_node_types[kind];
  if (!known) return;
  const definition = (await (await api.fetchApi(`/object_info/${kind}`)).json())[kind];
  const inputs = { ...definition.input.required, ...definition.input.optional };
  await app.registerNodeDef(kind, definition); // for nodes to come
  for (const node of allNodes()) {
    if (node.type !== kind) continue;
    for (const widget of node.widgets ?? []) {
      const [type, options] = inputs[widget.name] ?? [];
      const values = Array.isArray(type) ? type : options?.options;
      if (widget.type === "combo" && values) widget.options.values = values;
    }
    renewed(node);
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
});
