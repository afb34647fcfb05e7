// SPDX-License-Identifier: GPL-3.0-or-later
// A saved adapter appears in every Load SODA Adapter at once, without pressing R.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

app.registerExtension({
  name: "soda.refresh",
  setup() {
    api.addEventListener("soda.saved", () => app.refreshComboInNodes());
  },
});
