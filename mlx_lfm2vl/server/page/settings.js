// Settings of all conversations, and the schema of the answers. `body()` gives what they add to a request.

import { element, notice } from "./dom.js";
import { readSchema } from "./schema.js";
import { loadSettings, saveSettings } from "./store.js";

const NUMBERS = [
  "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty",
  "seed", "max_completion_tokens", "max_image_tokens",
];
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

/** Makes the two dialogs work. `schemaChanged` is called with a schema that a person has chosen, or null. */
export function makeSettings({ schemaChanged }) {
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
  dialog.addEventListener("invalid", () => { dialog.querySelector("details").open = true; }, true);
  document.getElementById("open-settings").addEventListener("click", () => { show(); dialog.showModal(); });
  document.getElementById("reset-settings").addEventListener("click", () => {
    fields.forEach((field) => { delete settings[field.name]; });
    saveSettings(settings);
    show();
  });

  makeTheme(settings);
  const { schema, useSchema } = makeForm(settings, schemaChanged);

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
    useSchema,
    model: () => settings.model,
    setModel(name) { settings.model = name; saveSettings(settings); },
  };
}

function makeTheme(settings) {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const button = document.getElementById("theme");
  const apply = () => {
    document.documentElement.dataset.theme = settings.theme ?? (dark.matches ? "dark" : "light");
    button.title = button.ariaLabel = settings.theme ? `Theme: ${settings.theme}` : "Theme: as the system";
  };
  dark.addEventListener("change", apply);
  button.addEventListener("click", () => {
    const round = dark.matches ? ["light", "dark"] : ["dark", "light"]; // and then the system's again
    settings.theme = round[settings.theme ? round.indexOf(settings.theme) + 1 : 0];
    saveSettings(settings);
    apply();
    notice(`${button.title}.`);
  });
  apply();
}

function makeForm(settings, changed) {
  const dialog = document.getElementById("form");
  const text = document.getElementById("form-schema");
  const error = document.getElementById("form-error");
  const example = document.getElementById("form-example");
  const state = document.getElementById("form-state");
  let schema = null;

  const useSchema = (value) => { schema = value; state.hidden = value === null; };
  const choose = (value) => { useSchema(value); changed(value); };
  const showExample = () => { text.value = JSON.stringify(EXAMPLES[example.value], null, 2); error.textContent = ""; };
  example.append(...Object.keys(EXAMPLES).map((name) => element("option", { text: name })));
  example.addEventListener("change", showExample);
  document.getElementById("open-form").addEventListener("click", () => {
    if (schema) text.value = JSON.stringify(schema, null, 2);
    else if (settings.schema) text.value = settings.schema;
    else showExample();
    error.textContent = "";
    dialog.showModal();
  });
  document.getElementById("form-cancel").addEventListener("click", () => dialog.close());
  document.getElementById("form-off").addEventListener("click", () => { choose(null); document.getElementById("prompt").focus(); });
  document.getElementById("form-use").addEventListener("click", () => {
    try {
      const value = readSchema(text.value);
      settings.schema = text.value;
      saveSettings(settings);
      choose(value);
      dialog.close();
    } catch (problem) {
      error.textContent = `This is not a JSON Schema: ${problem.message}`;
    }
  });
  return { schema: () => schema, useSchema };
}
