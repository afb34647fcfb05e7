// SPDX-License-Identifier: GPL-3.0-or-later
// What looks like a mistake in a training, as text on its node until it runs again.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { nodeByExecutionId } from "./lib/graph.js";

const WIDGET = "soda_notice";
// kind -> in Chinese, from numbers and names; English comes from the server
const CHINESE = {
  "some captions": ({ count, total, first }) =>
    `${total} 张图片中有 ${count} 张没有标注（第一张：${first}）：它们按空标注训练，对学会你的词毫无帮助；请给每张图片配一个同名的文本文件`,
  "same captions": ({ count }) => `${count} 条标注完全相同：旁边没有文本文件的图片，标注是空的，对学会你的词毫无帮助`,
  "base captions": ({ count }) => `底模正面条件里有 ${count} 条标注与正面条件相同：请在底模正面条件里去掉占位词，dco 才分得出什么是新的`,
  "empty caption": () => "标注是空的，对学会你的词毫无帮助",
  "rotation rate": () => "旋转学习率为 0：旋转保持不变",
  "shift rate": () => "偏移学习率为 0：偏移保持不变",
};

app.registerExtension({
  name: "soda.notices",
  setup() {
    api.addEventListener("soda.notice", ({ detail }) => {
      const node = nodeByExecutionId(detail.node);
      if (node) say(node, translated(detail));
    });
    api.addEventListener("executing", ({ detail }) => {
      const node = detail && nodeByExecutionId(String(detail.node ?? detail));
      if (node) clear(node);
    });
  },
});

function translated(notice) {
  const locale = app.extensionManager?.setting?.get("Comfy.Locale") ?? "en";
  return (locale.startsWith("zh") && CHINESE[notice.kind]?.(notice)) || notice.text;
}

function say(node, text) {
  let widget = node.widgets?.find((w) => w.name === WIDGET);
  if (!widget) {
    const element = document.createElement("div");
    element.setAttribute("role", "alert");
    element.style.cssText = "overflow:auto; padding:4px 8px; border-left:3px solid #f5a623; border-radius:4px; " +
      "background:#f5a62322; color:var(--input-text, #ddd); font:12px/1.4 sans-serif; white-space:pre-wrap;";
    const options = { serialize: false, hideOnZoom: false, getMinHeight: () => 56, getMaxHeight: () => 90 };
    widget = node.addDOMWidget(WIDGET, "SODA_NOTICE", element, options);
    widget.serialize = false;
  }
  const lines = new Set(widget.element.textContent.split("\n").filter(Boolean).concat(`⚠ ${text}`));
  widget.element.textContent = [...lines].join("\n");
  node.setSize([node.size[0], Math.max(node.size[1], node.computeSize()[1])]);
  node.setDirtyCanvas?.(true, true);
}

function clear(node) {
  const widget = node.widgets?.find((w) => w.name === WIDGET);
  if (!widget) return;
  widget.onRemove?.();
  node.widgets.splice(node.widgets.indexOf(widget), 1);
  node.setDirtyCanvas?.(true, true);
}
