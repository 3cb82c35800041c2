// Settings of all conversations, and the schema of the answers. `body()` gives what they add to a request.

import { element } from "./dom.js";
import { readSchema } from "./schema.js";
import { loadSettings, saveSettings } from "./store.js";

const NUMBERS = ["temperature", "top_p", "seed", "max_completion_tokens", "max_image_tokens"];
const EXAMPLES = {
  "Things in the picture": {
    type: "object",
    properties: { things: { type: "array", maxItems: 20, items: {
      type: "object",
      properties: { name: { type: "string" }, colour: { type: "string" }, count: { type: "integer", minimum: 1, maximum: 100 } },
      required: ["name", "colour", "count"],
      additionalProperties: false,
    } } },
    required: ["things"],
    additionalProperties: false,
  },
  "A receipt": {
    type: "object",
    properties: {
      shop: { type: "string" }, date: { type: "string" }, total: { type: "number" },
      items: { type: "array", items: {
        type: "object",
        properties: { name: { type: "string" }, price: { type: "number" } },
        required: ["name", "price"],
        additionalProperties: false,
      } },
    },
    required: ["shop", "date", "total", "items"],
    additionalProperties: false,
  },
  "Yes or no": {
    type: "object",
    properties: { answer: { type: "boolean" }, reason: { type: "string", maxLength: 200 } },
    required: ["answer", "reason"],
    additionalProperties: false,
  },
};

/** Makes the two dialogs work. */
export function makeSettings() {
  const settings = loadSettings();
  const dialog = document.getElementById("settings");
  const fields = [...dialog.querySelectorAll("[name]")];

  const show = () => fields.forEach((field) => { field.value = settings[field.name] ?? ""; });
  dialog.addEventListener("input", (event) => {
    const field = event.target;
    if (!field.checkValidity()) return;
    if (field.value === "") delete settings[field.name];
    else settings[field.name] = field.value;
    saveSettings(settings);
  });
  document.getElementById("open-settings").addEventListener("click", () => { show(); dialog.showModal(); });
  document.getElementById("reset-settings").addEventListener("click", () => {
    fields.forEach((field) => { delete settings[field.name]; });
    saveSettings(settings);
    show();
  });

  makeTheme(settings);
  const schema = makeForm(settings);

  return {
    body() {
      const made = {};
      for (const name of NUMBERS) if (settings[name] !== undefined) made[name] = Number(settings[name]);
      if (settings.tiling !== undefined) made.tiling = settings.tiling === "true";
      if (schema()) made.response_format = { type: "json_schema", json_schema: { name: "answer", strict: true, schema: schema() } };
      return made;
    },
    system: () => settings.system ?? "",
    hasSchema: () => Boolean(schema()),
    model: () => settings.model,
    setModel(name) { settings.model = name; saveSettings(settings); },
  };
}

function makeTheme(settings) {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const apply = () => { document.documentElement.dataset.theme = settings.theme ?? (dark.matches ? "dark" : "light"); };
  dark.addEventListener("change", apply);
  document.getElementById("theme").addEventListener("click", () => {
    settings.theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    saveSettings(settings);
    apply();
  });
  apply();
}

function makeForm(settings) {
  const dialog = document.getElementById("form");
  const text = document.getElementById("form-schema");
  const error = document.getElementById("form-error");
  const example = document.getElementById("form-example");
  const state = document.getElementById("form-state");
  let schema = null;

  const use = (value) => { schema = value; state.hidden = value === null; };
  const showExample = () => { text.value = JSON.stringify(EXAMPLES[example.value], null, 2); error.textContent = ""; };
  example.append(...Object.keys(EXAMPLES).map((name) => element("option", { text: name })));
  example.addEventListener("change", showExample);
  document.getElementById("open-form").addEventListener("click", () => {
    if (settings.schema) text.value = settings.schema;
    else showExample();
    error.textContent = "";
    dialog.showModal();
  });
  document.getElementById("form-cancel").addEventListener("click", () => dialog.close());
  document.getElementById("form-off").addEventListener("click", () => { use(null); document.getElementById("prompt").focus(); });
  document.getElementById("form-use").addEventListener("click", () => {
    try {
      const value = readSchema(text.value);
      settings.schema = text.value;
      saveSettings(settings);
      use(value);
      dialog.close();
    } catch (problem) {
      error.textContent = `This is not a JSON Schema: ${problem.message}`;
    }
  });
  return () => schema;
}
