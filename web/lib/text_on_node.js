// SPDX-License-Identifier: GPL-3.0-or-later
// Text that a node shows below its widgets, as Markdown, by the host's own widget.
import { app } from "../../../scripts/app.js";

const NAME = "soda_text";

/** Show Markdown on a node, in place of what it showed before; an empty text takes the widget away. */
export function showText(node, text) {
  const shown = node.widgets?.find((widget) => widget.name === NAME);
  if (!text) {
    if (shown) node.removeWidget(shown);
    return;
  }
  const widget = shown ?? addWidget(node, text.split("\n").length);
  widget.value = text;
  app.graph?.setDirtyCanvas(true, true);
}

const LINE = 19; // pixels
const MOST_LINES = 32; // longer texts scroll, or the user makes the node larger

function addWidget(node, lines) {
  const { widget } = app.widgets.MARKDOWN(node, NAME, ["MARKDOWN", { default: "" }], app);
  widget.serialize = false; // neither in the saved graph, whose values go by place,
  widget.options.serialize = false; // nor in the prompt
  widget.options.read_only = true;
  widget.options.hideInPanel = true;
  const [width, height] = node.computeSize(); // with the least height of a text
  const wanted = height + LINE * Math.min(lines, MOST_LINES);
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], wanted)]);
  return widget;
}
