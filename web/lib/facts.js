// SPDX-License-Identifier: GPL-3.0-or-later
// What an adapter's file says of itself, as Markdown.

const WORDS = {
  en: { trigger: "trigger", base: "base", trained: "trained", merged: "merged", layers: "layers", steps: "steps", pictures: "pictures" },
  zh: { trigger: "触发词", base: "底模", trained: "训练", merged: "融合自", layers: "层", steps: "步", pictures: "张图" },
};

/** One line, without what Markdown would obey. */
const plain = (value) => String(value).replace(/\s+/g, " ").replace(/[\\`*_[\]<>#|]/g, "\\$&").slice(0, 200);

/**
 * @param header a safetensors file's metadata, as the host's /view_metadata gives it
 * @returns Markdown, or "" where the file is none of ours
 */
export function factsOf(header, language = "en") {
  const words = language?.startsWith("zh") ? WORDS.zh : WORDS.en;
  let document;
  try {
    document = JSON.parse(header?.soda ?? "");
  } catch {
    return "";
  }
  const said = document.metadata ?? {};
  const base = said.base_model ?? {};
  const settings = said.settings ?? {};
  const counts = ["steps", "pictures"].filter((key) => said[key]).map((key) => `${said[key]} ${words[key]}`);
  const parents = (said.parents ?? []).map((parent) => `${parent.strength ?? 1} × ${parent.title || parent.hash?.slice(0, 12)}`);
  const facts = [
    [words.trigger, said.trigger_phrase],
    [words.base, [base.name, base.family, base.dtype].filter(Boolean).join(", ")],
    [words.trained, [...counts, settings.train, settings.decomposition, settings.layers].filter(Boolean).join(", ")],
    [words.merged, parents.join(" + ") + (settings.merge_method ? ` (${settings.merge_method})` : "")],
    [words.layers, Object.keys(document.layers ?? {}).length],
  ];
  return facts.filter(([, fact]) => fact).map(([word, fact]) => `- ${word}: **${plain(fact)}**`).join("\n");
}
