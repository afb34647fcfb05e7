// SPDX-License-Identifier: GPL-3.0-or-later
// Our own types have a colour, in both renderers and beside any palette that does not give them one.
import { app } from "../../scripts/app.js";

const COLOURS = { SODA_ADAPTER: "#c77dff", SODA_SETTINGS: "#8fa8d6" };

/** Palettes are loaded at any time and clear the colours of types they do not know. */
function keep(table, type, colour) {
  let own = "";
  Object.defineProperty(table, type, {
    enumerable: true,
    configurable: true,
    get: () => own || colour,
    set: (value) => (own = value),
  });
}

app.registerExtension({
  name: "soda.colours",
  setup() {
    const style = document.createElement("style");
    style.textContent = Object.entries(COLOURS).map(([type, colour]) => `:root { --color-datatype-${type}: ${colour}; }`).join("\n");
    document.head.append(style);
    for (const [type, colour] of Object.entries(COLOURS)) {
      keep(app.canvas.default_connection_color_byType, type, colour);
      keep(app.canvas.constructor.link_type_colors, type, colour);
    }
    app.canvas.setDirty(true, true);
  },
});
