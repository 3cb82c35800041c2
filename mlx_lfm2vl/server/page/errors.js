// Errors of the server in the words of the page: a picture's place in the request becomes its name, and a field's name
// what the page calls it.

const FIELDS = {
  "response_format.json_schema.schema": "The schema",
  response_format: "The schema",
  max_completion_tokens: "Longest answer",
  max_image_tokens: "Picture budget",
  tiling: "Large pictures",
  temperature: "Temperature",
  top_p: "Top p",
  top_k: "Top k",
  min_p: "Min p",
  repetition_penalty: "Repetition penalty",
  frequency_penalty: "Frequency penalty",
  presence_penalty: "Presence penalty",
  seed: "Seed",
  model: "The model",
};

/** The server's words for people. `sent`: for each message of the request the names of its pictures, in order. */
export function inWords(text, sent) {
  const picture = /\bmessages\[(\d+)\]\.content\[(\d+)\](?:\.\w+)*/g;
  const named = text.replace(picture, (place, message, part) => sent[message]?.[part] ?? (sent[message] ? "The question" : place));
  const field = Object.keys(FIELDS).find((name) => new RegExp(`^${name.replaceAll(".", "\\.")}\\b`).test(named));
  return field ? FIELDS[field] + named.slice(field.length) : named.replace(/^JSON schema\b/, "The schema");
}
