// SPDX-License-Identifier: GPL-3.0-or-later
// Nodes that write a file say which.
import { app } from "../../scripts/app.js";
import { make } from "./lib/format.js";
import { say } from "./lib/words.js";

const NODES = ["SODASaveAdapter", "SODAExportLoRA"];
const HEIGHT = 34;

app.registerExtension({
  name: "soda.saved",
  nodeCreated(node) {
    if (!NODES.includes(node.comfyClass)) return;
    const line = make("div", "saved");
    const widget = node.addDOMWidget("saved", "SODA_SAVED", line, {
      serialize: false,
      hideOnZoom: false,
      hideInPanel: true,
      margin: 6,
      getMinHeight: () => HEIGHT,
      getMaxHeight: () => HEIGHT,
    });
    widget.serialize = false;
    const before = node.onExecuted;
    node.onExecuted = function (output) {
      before?.apply(this, arguments);
      const file = output?.soda_saved?.[0];
      line.textContent = file ? say("savedAs", { name: file.name }) : "";
      line.title = line.textContent;
    };
  },
});
