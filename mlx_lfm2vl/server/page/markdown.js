// Markdown to elements. In: a text of a model, maybe not complete. Out: a fragment of plain elements; raw HTML stays
// text, pictures become their description, and links go to http, https and mailto only.

import { element, copyText, iconButton } from "./dom.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`\s]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*$/;
const UNDERLINE = /^ {0,3}(=+|-{2,})\s*$/; // of a heading
const INDENTED = /^(?: {4}|\t)/;
const TASK = /^\[([ xX])\]\s+/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const QUOTE = /^ {0,3}> ?/;
const DIVIDER = /^ {0,3}\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;
const DEEPEST = 12; // quotes and lists within each other
const LONGEST = 2000; // characters of a line that may begin a block: the time of a pattern grows with their square

/** The elements of a text. */
export function markdown(text) {
  const made = document.createDocumentFragment();
  made.append(...blocks(text.replace(/\r\n?/g, "\n").split("\n").map(bounded), 0));
  return made;
}

/** A line that is too long for the patterns, as one that begins no block. */
function bounded(line) {
  return line.length > LONGEST ? `\u2060${line.trim()}` : line;
}

function blocks(lines, depth) {
  const made = [];
  let at = 0;
  while (at < lines.length) {
    const [block, next] = oneBlock(lines, at, depth);
    if (block) made.push(block);
    at = next;
  }
  return made;
}

function oneBlock(lines, at, depth) {
  const line = lines[at];
  if (!line.trim()) return [null, at + 1];
  if (INDENTED.test(line)) return indented(lines, at);
  let match = FENCE.exec(line);
  if (match) return fenced(lines, at, match);
  match = HEADING.exec(line);
  if (match) return [element(`h${Math.min(6, match[1].length + 2)}`, {}, ...inline(match[2])), at + 1];
  if (RULE.test(line)) return [element("hr"), at + 1];
  if (QUOTE.test(line) && depth < DEEPEST) return quote(lines, at, depth);
  if (ITEM.test(line) && depth < DEEPEST) return list(lines, at, depth);
  if (beginsTable(lines, at)) return table(lines, at);
  return paragraph(lines, at, depth);
}

function fenced(lines, at, [, fence, language]) {
  let end = at + 1;
  while (end < lines.length && !(lines[end].trim().startsWith(fence) && !lines[end].trim().replaceAll(fence[0], ""))) end += 1;
  return [figure(lines.slice(at + 1, end).join("\n"), language), end + 1];
}

function indented(lines, at) {
  let end = at;
  while (end < lines.length && (INDENTED.test(lines[end]) || !lines[end].trim())) end += 1;
  return [figure(lines.slice(at, end).map((line) => line.replace(INDENTED, "")).join("\n").trimEnd()), end];
}

function figure(code, language) {
  const head = element("figcaption", {}, language || "text", iconButton("copy", "Copy the code", () => copyText(code)));
  return element("figure", { class: "code" }, head, element("pre", { tabindex: "0" }, element("code", { text: code })));
}

function quote(lines, at, depth) {
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end += 1;
  const inner = lines.slice(at, end).map((line) => line.replace(QUOTE, ""));
  return [element("blockquote", {}, ...blocks(inner, depth + 1)), end];
}

function list(lines, at, depth) {
  const [, indent, marker] = ITEM.exec(lines[at]);
  const ordered = /\d/.test(marker);
  const items = [];
  let end = at;
  while (end < lines.length) {
    const match = ITEM.exec(lines[end]);
    if (match && match[1].length <= indent.length + 1) {
      if (/\d/.test(match[2]) !== ordered || match[1].length < indent.length) break;
      items.push([match[3]]);
    } else if (!lines[end].trim()) {
      const next = lines[end + 1];
      if (next === undefined || !(/^\s{2,}\S/.test(next) || ITEM.test(next))) break;
      items.at(-1).push("");
    } else if (/^\s/.test(lines[end]) || match) {
      items.at(-1).push(lines[end].slice(Math.min(indent.length + marker.length + 1, lines[end].search(/\S/))));
    } else if (lines[end - 1].trim() && !startsBlock(lines[end])) {
      items.at(-1).push(lines[end]);
    } else {
      break;
    }
    end += 1;
  }
  const made = items.map(([start, ...others]) => {
    const task = TASK.exec(start);
    const parts = blocks([task ? start.slice(task[0].length) : start, ...others], depth + 1);
    const inner = parts[0]?.tagName === "P" ? [...parts[0].childNodes, ...parts.slice(1)] : parts;
    return task ? element("li", { class: "task" }, box(task[1] !== " "), ...inner) : element("li", {}, ...inner);
  });
  return [element(ordered ? "ol" : "ul", ordered ? { start: parseInt(marker, 10) } : {}, ...made), end];
}

function box(done) {
  return element("input", { type: "checkbox", disabled: true, checked: done, "aria-label": done ? "done" : "to do" });
}

function cells(line) {
  return line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function beginsTable(lines, at) {
  const next = lines[at + 1];
  return lines[at].includes("|") && next !== undefined && DIVIDER.test(next) && cells(lines[at]).length === cells(next).length;
}

function alignment(cell) {
  if (!cell.endsWith(":")) return null;
  return cell.startsWith(":") ? "centre" : "right";
}

function table(lines, at) {
  const aligned = cells(lines[at + 1]).map(alignment);
  const row = (line, tag) => {
    const given = cells(line);
    return element("tr", {}, ...aligned.map((side, column) => element(tag, { class: side }, ...inline(given[column] ?? ""))));
  };
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|")) end += 1;
  const body = lines.slice(at + 2, end).map((line) => row(line, "td"));
  const made = element("table", {}, element("thead", {}, row(lines[at], "th")), element("tbody", {}, ...body));
  return [element("div", { class: "scroll", tabindex: "0" }, made), end];
}

function startsBlock(line) {
  return FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || ITEM.test(line);
}

function paragraph(lines, at, depth) {
  let end = at + 1;
  const goesOn = (line) => line.trim() && (depth >= DEEPEST || !(startsBlock(line) || UNDERLINE.test(line)));
  while (end < lines.length && goesOn(lines[end]) && !beginsTable(lines, end)) end += 1;
  const underline = depth < DEEPEST && end < lines.length ? UNDERLINE.exec(lines[end]) : null;
  const made = element(!underline ? "p" : underline[1][0] === "=" ? "h3" : "h4");
  lines.slice(at, end).forEach((line, index) => {
    if (index) made.append(element("br"));
    made.append(...inline(line.trim()));
  });
  return [made, underline ? end + 1 : end];
}

// The part of a link behind its text: an address, in which brackets are in pairs, and maybe a title.
const TARGET = String.raw`\(\s{0,9}(?:<([^<>\n]*)>|((?:[^\s()\\]|\\.|\((?:[^\s()\\]|\\.|\([^\s()]*\))*\))*))(?:\s+(?:"[^"]*"|'[^']*'|\([^()]*\)))?\s*\)`;
const SPANS = [
  [/^\\([\\`*_{}[\]()#+\-.!|<>~])/, (match) => match[1]],
  [/^(`+)(?!`)([^]*?[^`])\1(?!`)/, (match) => element("code", { text: match[2].replace(/^ (.+) $/, "$1") })],
  [/^&(?:#\d{1,7}|#[xX][\da-fA-F]{1,6}|[a-zA-Z][a-zA-Z\d]{1,31});/, (match) => decoded(match[0])],
  [new RegExp(`^!\\[([^\\]]*)\\]${TARGET}`), (match) => element("em", { text: match[1] ? `[picture: ${match[1]}]` : "[picture]" })],
  [new RegExp(`^\\[((?:[^[\\]]|\\[[^[\\]]*\\])+)\\]${TARGET}`), (match, depth) => link(match[2] ?? match[3], inline(match[1], depth + 1))],
  [/^<(https?:\/\/[^\s<>]+)>/, (match) => link(match[1], [match[1]])],
  [/^https?:\/\/(?:[^\s<>"'`()]*(?:\([^\s<>"'`()]*\)|[^\s<>"'`()\].,;:!?]))+/, (match) => link(match[0], [match[0]])],
  [/^(\*\*|__)(?=\S)([^]*?\S)\1/, (match, depth) => element("strong", {}, ...inline(match[2], depth + 1))],
  [/^\*(?=\S)([^*]*[^*\s])\*(?!\*)/, (match, depth) => element("em", {}, ...inline(match[1], depth + 1))],
  [/^_(?=\S)([^_]*[^_\s])_(?!\w)/, (match, depth) => element("em", {}, ...inline(match[1], depth + 1))],
  [/^~~(?=\S)([^]*?\S)~~/, (match, depth) => element("del", {}, ...inline(match[1], depth + 1))],
];

function inline(text, depth = 0) {
  const made = [];
  let plain = "";
  const flush = () => { if (plain) made.push(plain); plain = ""; };
  for (let at = 0; at < text.length;) {
    const found = depth < DEEPEST && span(text, at, depth);
    if (!found) {
      plain += text[at];
      at += 1;
      continue;
    }
    flush();
    made.push(found[0]);
    at += found[1];
  }
  flush();
  return made;
}

function span(text, at, depth) {
  const letter = text[at];
  if (!"\\`![<h*_~&".includes(letter)) return null;
  if ((letter === "_" || letter === "h") && at && /\w/.test(text[at - 1])) return null;
  const rest = text.slice(at, at + 4000); // a longer span is text: no time grows with its square
  for (const [pattern, make] of SPANS) {
    const match = pattern.exec(rest);
    if (match) return [make(match, depth), match[0].length];
  }
  return null;
}

/** The characters that an entity such as `&amp;` stands for. */
function decoded(entity) {
  return new DOMParser().parseFromString(entity, "text/html").body.textContent;
}

function link(address, children) {
  let url;
  try {
    url = new URL(address.replace(/\\([^\w\s])/g, "$1").replace(/&#?\w{2,32};/g, decoded));
  } catch {
    return element("span", {}, ...children);
  }
  if (!["http:", "https:", "mailto:"].includes(url.protocol)) return element("span", {}, ...children);
  return element("a", { href: url.href, target: "_blank", rel: "noopener noreferrer", title: url.href }, ...children);
}
