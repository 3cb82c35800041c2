// JSON as a table: a list of objects has a row each, an object a row for each of its keys.

import { element, copyText, iconButton, saveText } from "./dom.js";

/** A table with buttons to copy and save it, or null where the text is no JSON object or list. */
export function jsonTable(text) {
  let value;
  try {
    value = JSON.parse(text);
  } catch {
    return null; // an answer that is not complete yet
  }
  if (value === null || typeof value !== "object") return null;
  const { columns, rows } = grid(value);
  if (!rows.length) return element("p", { class: "fine", text: "The answer is empty." });
  const head = element("tr", {}, ...columns.map((name) => element("th", { scope: "col", text: name })));
  const body = rows.map((row) => element("tr", {}, ...row.map((cell) => element("td", {}, shown(cell)))));
  return element("div", { class: "result" },
    element("div", { class: "scroll", tabindex: "0" }, element("table", {}, element("thead", {}, head), element("tbody", {}, ...body))),
    element("div", { class: "result-tools" },
      iconButton("copy", "Copy as JSON", () => copyText(JSON.stringify(value, null, 2))),
      iconButton("save", "Save as CSV", () => saveText("answer.csv", csv(columns, rows), "text/csv"))));
}

function isRecord(value) {
  return value !== null && typeof value === "object" && !Array.isArray(value);
}

function grid(value) {
  // An object around one list of objects is shown as that list.
  const only = isRecord(value) ? Object.values(value) : [];
  const list = Array.isArray(value) ? value : only.length === 1 && Array.isArray(only[0]) && only[0].every(isRecord) ? only[0] : null;
  if (list === null) return { columns: ["Field", "Value"], rows: Object.entries(value) };
  if (!list.length || !list.every(isRecord)) return { columns: ["Value"], rows: list.map((item) => [item]) };
  const columns = [...new Set(list.flatMap(Object.keys))];
  return { columns, rows: list.map((item) => columns.map((name) => (Object.hasOwn(item, name) ? item[name] : ""))) };
}

function shown(cell) {
  if (Array.isArray(cell) && cell.every((item) => item === null || typeof item !== "object")) return cell.join(", ");
  if (cell !== null && typeof cell === "object") {
    const { columns, rows } = grid(cell);
    const head = Array.isArray(cell) ? [element("tr", {}, ...columns.map((name) => element("th", { scope: "col", text: name })))] : [];
    return element("table", {}, ...head, ...rows.map((row) => element("tr", {}, ...row.map((inner) => element("td", {}, shown(inner))))));
  }
  return cell === null ? "none" : String(cell);
}

function csv(columns, rows) {
  const field = (value) => {
    let text = value !== null && typeof value === "object" ? JSON.stringify(value) : String(value ?? "");
    if (typeof value === "string" && /^[=+\-@\t\r]/.test(text)) text = `'${text}`; // no spreadsheet takes it for a formula
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [columns, ...rows].map((row) => row.map(field).join(",")).join("\r\n") + "\r\n";
}
