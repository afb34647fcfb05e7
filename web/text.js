// SPDX-License-Identifier: GPL-3.0-or-later
// What our nodes say of their work (a report, a summary, where a file went) stands on them.
import { app } from "../../scripts/app.js";
import { showText } from "./lib/text_on_node.js";

const said = (output) => [output?.text ?? []].flat().join("\n\n");

/** A node by the place its outputs are kept under: its id, in a subgraph behind the subgraph's. */
function nodeAt(locator) {
  const [id, graph] = String(locator).split(":").reverse();
  const root = app.rootGraph ?? app.graph;
  return (graph ? root.subgraphs?.get(graph) : root)?.getNodeById(id);
}

app.registerExtension({
  name: "soda.text",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!nodeData.name.startsWith("SODA")) return;
    const executed = nodeType.prototype.onExecuted;
    nodeType.prototype.onExecuted = function (output) {
      executed?.call(this, output);
      if (output?.text) showText(this, said(output));
    };
  },
  onNodeOutputsUpdated(outputs) {
    for (const [locator, output] of Object.entries(outputs)) {
      const node = output?.text && nodeAt(locator);
      if (node?.type?.startsWith("SODA")) showText(node, said(output));
    }
  },
});
