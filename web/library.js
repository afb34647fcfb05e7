// SPDX-License-Identifier: GPL-3.0-or-later
// A click on an adapter in the model library brings Load SODA Adapter, as one on a LoRA brings Load LoRA.
import { app } from "../../scripts/app.js";

app.registerExtension({
  name: "soda.library",
  setup() {
    // The host has no door for this yet, only its own stores; where they are others, a click does nothing, as before.
    const stores = document.getElementById("vue-app")?.__vue_app__?.config.globalProperties.$pinia?._s;
    const library = stores?.get("modelToNode");
    const nodeDef = stores?.get("nodeDef")?.nodeDefsByName?.SODALoadAdapter;
    if (library?.registerNodeProvider && nodeDef && !library.getNodeProvider("soda"))
      library.registerNodeProvider("soda", { nodeDef, key: "adapter_name" });
  },
});
