// SPDX-License-Identifier: GPL-3.0-or-later
// Load SODA Adapter shows what the chosen file says of itself: trigger phrase, base, steps, settings.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { factsOf } from "./lib/facts.js";
import { showText } from "./lib/text_on_node.js";

async function refresh(node, name) {
  node.sodaFile = name; // the answer to an older choice may come later than that to a newer one
  if (!name) return showText(node, ""); // none is chosen yet
  let text = "";
  try {
    const answer = await api.fetchApi(`/view_metadata/soda?filename=${encodeURIComponent(name)}`);
    // (nothing for a header above 1 MiB, which the host does not read)
    if (answer.ok) text = factsOf(await answer.json(), app.extensionManager?.setting?.get("Comfy.Locale"));
  } catch (error) {
    console.warn("SODA: could not read what", name, "says of itself", error);
  }
  if (node.sodaFile === name) showText(node, text);
}

function followed(node) {
  if (node.comfyClass !== "SODALoadAdapter") return;
  const name = node.widgets?.find((each) => each.name === "adapter_name")?.value;
  if (name !== node.sodaFile) refresh(node, name);
}

app.registerExtension({
  name: "soda.facts",
  // templates' loaders take the newest adapter without a word to the widget, once all is loaded (see library.js)
  loadedGraphNode: (node) => setTimeout(() => followed(node)),
  refreshComboInNodes: () => setTimeout(() => app.graph.nodes.forEach(followed)),
  nodeCreated(node) {
    if (node.comfyClass !== "SODALoadAdapter") return;
    const widget = node.widgets?.find((each) => each.name === "adapter_name");
    if (!widget) return;
    const changed = widget.callback;
    widget.callback = function (value, ...rest) {
      changed?.call(this, value, ...rest);
      refresh(node, value);
    };
    const configured = node.onConfigure; // a saved graph sets values without a word to the widget
    node.onConfigure = function (...args) {
      configured?.apply(this, args);
      refresh(node, widget.value);
    };
    queueMicrotask(() => node.sodaFile ?? refresh(node, widget.value));
  },
});
