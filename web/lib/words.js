// SPDX-License-Identifier: GPL-3.0-or-later
// What the pack says in the browser: `soda` of locales/<language>/main.json, in the front end's language.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";

let languages = {};

/** Fetch all words once; before it, and where one is missing, a word is its key. */
export async function loadWords() {
  languages = await (await api.fetchApi("/i18n")).json();
}

/** The words of a key, with `{name}` replaced by the values' fields. */
export function say(key, values = {}) {
  const locale = app.extensionManager?.setting?.get("Comfy.Locale") ?? "en";
  const text =
    languages[locale]?.soda?.[key] ?? languages[locale.split("-")[0]]?.soda?.[key] ?? languages.en?.soda?.[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
}
