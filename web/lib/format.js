// SPDX-License-Identifier: GPL-3.0-or-later
// Numbers and small pieces of a page.

/** Three significant digits, or so many: `0.0934`, `12.5`, `5e-5`. */
export function number(value, digits = 3) {
  if (value === 0) return "0";
  if (Math.abs(value) < 10 ** -digits || Math.abs(value) >= 1e6)
    return value.toExponential(digits - 1).replace(/\.?0+e/, "e").replace("e+", "e");
  return String(Number(value.toPrecision(digits)));
}

/** Seconds as `4:45` or `1:02:03`. */
export function duration(seconds) {
  const two = (value) => String(value).padStart(2, "0");
  const [hours, minutes, rest] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, Math.floor(seconds) % 60];
  return hours ? `${hours}:${two(minutes)}:${two(rest)}` : `${minutes}:${two(rest)}`;
}

/** An element with a class; `content` is its text, or its children. */
export function make(tag, name, content = []) {
  const element = document.createElement(tag);
  element.className = `soda-${name}`;
  element.append(...(Array.isArray(content) ? content : [content]));
  return element;
}
