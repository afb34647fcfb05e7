// SPDX-License-Identifier: GPL-3.0-or-later
// Curves over steps, as SVG in the pixels of the element they are drawn in.
import { number } from "./format.js";

const NS = "http://www.w3.org/2000/svg";
const LEFT = 46;
const BOTTOM = 18;
const TOP = 6;
const RIGHT = 10;

/** Round numbers inside a range, about `count` of them. */
export function ticks(low, high, count) {
  const rough = (high - low) / count;
  if (!(rough > 0)) return [];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((times) => times * power).find((size) => size >= rough);
  const found = [];
  for (let at = Math.ceil(low / step); at * step <= high + step * 1e-9; at++) found.push(at * step);
  return found;
}

/** The range that shows smooth curves whole, and of noisy ones all but the highest tenth. */
export function range(smooth, noisy = []) {
  const sorted = noisy.map(([, value]) => value).sort((a, b) => a - b);
  const all = [...sorted.slice(0, Math.ceil(sorted.length * 0.9)), ...smooth.map(([, value]) => value)];
  if (!all.length) return [0, 1];
  const [low, high] = [Math.min(...all), Math.max(...all)];
  const space = Math.max((high - low) * 0.08, Math.abs(high) * 0.02) || 1; // what hardly changes looks so
  return [low >= 0 ? Math.max(0, low - space) : low - space, high + space];
}

/** The point of a curve next to a step. */
export function nearest(points, step) {
  return points.reduce((best, point) => (Math.abs(point[0] - step) < Math.abs(best[0] - step) ? point : best));
}

function shape(tag, attributes, text = "") {
  const element = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return element;
}

const path = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

/** A line without axes, from its smallest to its largest value. */
export function spark(points) {
  const [width, height] = [100, 20];
  const svg = shape("svg", { class: "soda-spark", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none" });
  if (points.length < 2) return svg;
  const [first, last] = [points[0][0], points.at(-1)[0]];
  const values = points.map(([, value]) => value);
  const [low, high] = [Math.min(0, ...values), Math.max(...values)];
  const place = ([step, value]) => [
    (width * (step - first)) / (last - first || 1),
    height - 2 - ((height - 4) * (value - low)) / (high - low || 1),
  ];
  svg.append(shape("path", { d: path(points.map(place)), "vector-effect": "non-scaling-stroke" }));
  return svg;
}

/**
 * The big chart.
 *
 * `draw(curves)` takes `{name: {points: [[step, value]], noisy, dots, own}}`, drawn in that order with the class of the
 * name; an own curve has its scale on the right. `onPoint(step)` is told what step the pointer is at, undefined when it leaves.
 */
export class Chart {
  constructor(onPoint) {
    this.element = shape("svg", { class: "soda-chart", role: "img" });
    this.curves = {};
    this.onPoint = onPoint;
    this.element.addEventListener("pointermove", (event) => this.#point(event));
    this.element.addEventListener("pointerleave", () => {
      this.at = undefined;
      this.#render();
      this.onPoint(undefined);
    });
    new ResizeObserver(() => this.#render()).observe(this.element);
  }

  draw(curves) {
    this.curves = curves;
    this.#render();
  }

  #render() {
    // clientWidth, not the bounding box: the canvas scales nodes
    const [width, height] = [this.element.clientWidth, this.element.clientHeight];
    this.element.replaceChildren();
    const drawn = Object.entries(this.curves).filter(([, { points }]) => points.length);
    if (width < 2 * LEFT + 20 || height < TOP + BOTTOM + 20 || !drawn.length) return;
    const points = (wanted) => drawn.filter(([, curve]) => wanted(curve)).flatMap(([, curve]) => curve.points);
    const own = points((curve) => curve.own);
    const scales = {
      left: range(points((curve) => !curve.own && !curve.noisy), points((curve) => curve.noisy)),
      right: range(own),
    };
    const end = width - (own.length ? LEFT : RIGHT);
    const steps = drawn.flatMap(([, { points }]) => [points[0][0], points.at(-1)[0]]);
    const [first, last] = [Math.min(...steps), Math.max(...steps)];
    const x = (step) => LEFT + ((end - LEFT) * (step - first)) / (last - first || 1);
    const y = (value, [low, high]) => height - BOTTOM - ((height - BOTTOM - TOP) * (value - low)) / (high - low);
    this.step = (pixels) => first + ((pixels - LEFT) / (end - LEFT)) * (last - first);
    const rows = Math.max(2, height / 40);
    for (const value of ticks(...scales.left, rows)) {
      const at = y(value, scales.left);
      this.element.append(
        shape("line", { class: "grid", x1: LEFT, x2: end, y1: at, y2: at }),
        shape("text", { x: LEFT - 6, y: at + 3.5, "text-anchor": "end" }, number(value)),
      );
    }
    for (const value of own.length ? ticks(...scales.right, rows) : [])
      this.element.append(shape("text", { class: "own", x: end + 6, y: y(value, scales.right) + 3.5 }, number(value)));
    for (const step of ticks(first, last, Math.max(2, width / 90)).filter(Number.isInteger))
      this.element.append(shape("text", { x: x(step), y: height - 4, "text-anchor": "middle" }, String(step)));
    const inside = shape("svg", { x: 0, y: 0, width: width, height: height - BOTTOM + 2 });
    for (const [name, { points, dots, own }] of drawn) {
      const places = points.map(([step, value]) => [x(step), y(value, own ? scales.right : scales.left)]);
      inside.append(shape("path", { class: name, d: path(places) }));
      const marked = dots || places.length === 1 ? places : name === "mean" ? [places.at(-1)] : [];
      for (const [cx, cy] of marked) inside.append(shape("circle", { class: name, cx, cy, r: dots ? 2.6 : 3.2 }));
    }
    this.element.append(inside);
    if (this.at !== undefined)
      this.element.append(shape("line", { class: "at", x1: x(this.at), x2: x(this.at), y1: TOP, y2: height - BOTTOM }));
  }

  #point(event) {
    if (!this.step) return;
    const box = this.element.getBoundingClientRect();
    const step = this.step(((event.clientX - box.left) / box.width) * this.element.clientWidth);
    const known = Object.values(this.curves).find(({ points }) => points.length)?.points;
    if (!known) return;
    this.at = nearest(known, step)[0];
    this.#render();
    this.onPoint(this.at);
  }
}
