// SPDX-License-Identifier: GPL-3.0-or-later
// A click on an adapter in the model library brings Load SODA Adapter, as one on a LoRA brings Load LoRA; and in the
// example workflows that node takes the newest adapter of the training they are for.
import { app } from "../../scripts/app.js";

app.registerExtension({
  name: "soda.library",
  setup() {
    // The host has no door for this yet, only its own stores; where they are others, a click does nothing, as before.
    const stores = document.getElementById("vue-app")?.__vue_app__?.config.globalProperties.$pinia?._s;
    const library = stores?.get("modelToNode");
    const nodeDef = stores?.get("nodeDef")?.nodeDefsByName?.SODALoadAdapter;
    if (library?.registerNodeProvider && nodeDef && !library.getNodeProvider("soda"))
      library.registerNodeProvider("soda", { nodeDef, key: "adapter_name" });
  },
  loadedGraphNode: chooseNewest,
  refreshComboInNodes: () => app.graph.nodes.forEach(chooseNewest),
});

function chooseNewest(node) {
  const prefix = node.properties?.soda_choose;
  const widget = prefix && node.widgets?.find((widget) => widget.name === "adapter_name");
  if (!widget) return;
  const counted = (name) => name.startsWith(`${prefix}_`) && /^\d+_\./.test(name.slice(prefix.length + 1));
  const newest = widget.options.values?.filter?.(counted).sort().at(-1);
  if (widget.value === "" && newest) widget.value = newest;
  if (widget.value !== "") delete node.properties.soda_choose; // chosen, by whomever
}
