// SPDX-License-Identifier: GPL-3.0-or-later
// Nodes of the open workflow, also those inside subgraphs.
import { app } from "../../../scripts/app.js";

/** Every node, outermost first. */
export function* allNodes(graph = app.rootGraph) {
  for (const node of graph?._nodes ?? []) {
    yield node;
    if (node.subgraph) yield* allNodes(node.subgraph);
  }
}

/** The node that the host's executor calls so: `7`, or `3:7` for node 7 in the subgraph of node 3. */
export function nodeByExecutionId(id) {
  let graph = app.rootGraph;
  let node;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(part) ?? graph?.getNodeById(Number(part));
    graph = node?.subgraph;
  }
  return node;
}
