// SPDX-License-Identifier: GPL-3.0-or-later
// Load SODA Adapter shows what the chosen file says of itself: trigger phrase, base, steps, settings.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { factsOf } from "./lib/facts.js";
import { showText } from "./lib/text_on_node.js";

const chooser = (node) => node.widgets?.find((each) => each.name === "adapter_name");

/** Show the facts of the chosen file; one that is not in the list is not asked for. */
async function refresh(node) {
  const { value, options } = chooser(node);
  const name = options.values?.includes?.(value) ? value : "";
  if (name === node.sodaFile) return;
  node.sodaFile = name; // the answer to an older choice may come later than that to a newer one
  let text = "";
  try {
    const answer = name && (await api.fetchApi(`/view_metadata/soda?filename=${encodeURIComponent(name)}`));
    // (nothing for a header above 1 MiB, which the host does not read)
    if (answer?.ok) text = factsOf(await answer.json(), app.extensionManager?.setting?.get("Comfy.Locale"));
  } catch (error) {
    console.warn("SODA: could not read what", name, "says of itself", error);
  }
  if (node.sodaFile === name) showText(node, text);
}

/** A little later, when everything that is loaded with it is there. */
function follow(node) {
  if (node.comfyClass === "SODALoadAdapter" && chooser(node)) setTimeout(() => refresh(node));
}

app.registerExtension({
  name: "soda.facts",
  // templates' loaders take the newest adapter without a word to the widget, once all is loaded (see library.js)
  loadedGraphNode: follow,
  refreshComboInNodes: () => app.graph.nodes.forEach(follow),
  nodeCreated(node) {
    const widget = node.comfyClass === "SODALoadAdapter" && chooser(node);
    if (!widget) return;
    const changed = widget.callback;
    widget.callback = function (...args) {
      changed?.apply(this, args);
      follow(node);
    };
    const configured = node.onConfigure; // a saved graph sets values without a word to the widget
    node.onConfigure = function (...args) {
      configured?.apply(this, args);
      follow(node);
    };
    follow(node);
  },
});
