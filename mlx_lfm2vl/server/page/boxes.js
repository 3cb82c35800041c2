// Boxes in an answer, and a drawing of them over the picture. Two forms are known: `bbox_2d` in thousandths, with the
// number of the picture in `image_id`, and `bbox` in fractions of the picture's sides.

import { element, svg } from "./dom.js";

const COLOURS = 6;

/** The boxes of an answer, [{label, picture, corners: [x1, y1, x2, y2] in 0..1}]; null where it is no list of boxes. */
export function readBoxes(text) {
  const found = parse(text);
  if (!Array.isArray(found) || !found.length) return null;
  const boxes = found.map(readBox);
  return boxes.every((box) => box) ? boxes : null;
}

function parse(text) {
  const inner = /^\s*(?:```(?:json)?\s*)?(\[[^]*\])\s*(?:```)?\s*$/.exec(text);
  if (!inner) return null;
  try {
    return JSON.parse(inner[1]);
  } catch {
    return null; // an answer that is not complete yet
  }
}

function readBox(item) {
  if (item === null || typeof item !== "object") return null;
  const [numbers, scale] = Array.isArray(item.bbox_2d) ? [item.bbox_2d, 1000] : [item.bbox, 1];
  if (!Array.isArray(numbers) || numbers.length !== 4 || !numbers.every(Number.isFinite)) return null;
  const within = numbers.map((number) => Math.min(1, Math.max(0, number / scale)));
  const [x1, x2] = [within[0], within[2]].sort((one, other) => one - other);
  const [y1, y2] = [within[1], within[3]].sort((one, other) => one - other);
  return { label: String(item.label ?? ""), picture: Number.isInteger(item.image_id) ? item.image_id : 0, corners: [x1, y1, x2, y2] };
}

/** The pictures that have boxes, with these over them, and a list of the labels. `pictures`: addresses, in order. */
export function drawBoxes(boxes, pictures) {
  const labels = [...new Set(boxes.map((box) => box.label))];
  const figures = pictures.map((picture, index) => [picture, boxes.filter((box) => box.picture === index)]);
  const colour = (box) => `box-${labels.indexOf(box.label) % COLOURS}`;
  const key = labels.map((label) => {
    const count = boxes.filter((box) => box.label === label).length;
    return element("li", { class: `box-${labels.indexOf(label) % COLOURS}` }, label || "no label", count > 1 ? ` × ${count}` : "");
  });
  return element("div", { class: "boxes" },
    ...figures.filter(([, own]) => own.length).map(([picture, own]) => figure(picture, own, colour)),
    element("ul", { class: "box-key", "aria-label": "Labels" }, ...key));
}

function figure(picture, boxes, colour) {
  const drawn = boxes.map((box) => {
    const [x1, y1, x2, y2] = box.corners.map((number) => number * 1000);
    const place = { x: x1, y: y1, width: Math.max(1, x2 - x1), height: Math.max(1, y2 - y1), "vector-effect": "non-scaling-stroke" };
    return svg("g", { class: colour(box) }, svg("title", { text: box.label }), svg("rect", { ...place, class: "halo" }), svg("rect", place));
  });
  const names = boxes.map((box) => {
    const name = element("span", { class: `box-label ${colour(box)}`, text: box.label });
    const [x1, y1, x2] = box.corners;
    if (x1 + x2 > 1) name.style.right = `${(1 - x2) * 100}%`;
    else name.style.left = `${x1 * 100}%`;
    name.style.top = `${y1 * 100}%`;
    if (y1 < 0.08) name.classList.add("inside");
    return name;
  });
  const said = `The picture with ${boxes.length} ${boxes.length === 1 ? "box" : "boxes"}: ${boxes.map((box) => box.label).join(", ")}`;
  const shown = element("img", { src: picture, alt: "" });
  const made = element("div", { class: "box-picture", role: "img", "aria-label": said },
    shown,
    svg("svg", { viewBox: "0 0 1000 1000", preserveAspectRatio: "none", "aria-hidden": "true" }, ...drawn),
    ...names);
  shown.addEventListener("load", () => made.style.setProperty("--ratio", shown.naturalWidth / shown.naturalHeight));
  return made;
}
