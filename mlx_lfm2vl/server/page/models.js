// The choice of a model, how far a model is that is loaded, and the key of a server that asks for one.

import { hasKey, listModels, setKey } from "./api.js";
import { element } from "./dom.js";

/** Makes the choice work. `show` asks the server for its models; `chosen` gives the one that answers. */
export function makeModels(settings) {
  const select = document.getElementById("model");
  const state = document.getElementById("model-state");

  async function show() {
    try {
      const models = await listModels();
      const chosen = select.value || settings.model();
      select.replaceChildren(...models.map(({ id }) => element("option", { value: id, text: id.split("/").at(-1) })));
      if (models.some(({ id }) => id === chosen)) select.value = chosen;
      state.textContent = stateOf(models.find(({ id }) => id === select.value));
    } catch (error) {
      state.textContent = error.message;
      if (error.status === 401) askForKey();
    }
  }

  function askForKey() {
    const dialog = document.getElementById("key");
    if (dialog.open) return;
    document.getElementById("key-error").textContent = hasKey() ? "The server refused this key." : "";
    dialog.addEventListener("close", () => { setKey(document.getElementById("key-text").value); show(); }, { once: true });
    dialog.showModal();
  }

  select.addEventListener("change", () => { settings.setModel(select.value); show(); });
  return { show, askForKey, chosen: () => select.value };
}

function stateOf(model) {
  const { state, progress } = model ?? {};
  if (!["loading", "downloading"].includes(state)) return "";
  return progress?.total ? `${state}, ${Math.round((100 * progress.done) / progress.total)} %` : state;
}
