// SPDX-License-Identifier: GPL-3.0-or-later
// The pictures of a run as a strip, and two of them under a slider.
import { make } from "./format.js";
import { say } from "./words.js";

export class Compare {
  /** `address(picture)` is where a picture is fetched from. */
  constructor(address) {
    this.address = address;
    this.pictures = [];
    this.sides = [make("img", "under"), make("img", "over")];
    this.labels = [make("button", "label soda-left"), make("button", "label soda-right")];
    this.slider = make("input", "slider");
    Object.assign(this.slider, { type: "range", min: 0, max: 100, value: 50 });
    this.frame = make("div", "frame", [...this.sides, make("div", "line"), this.slider, ...this.labels]);
    this.strip = make("div", "strip");
    this.prompts = make("div", "prompts");
    this.element = make("div", "compare", [this.frame, make("div", "shelf", [this.prompts, this.strip])]);
    this.slider.addEventListener("input", () => this.frame.style.setProperty("--at", `${this.slider.value}%`));
    this.labels.forEach((label, side) => label.addEventListener("click", () => this.#arm(side)));
    this.reset();
  }

  /** As for a new run: the picture before it against the newest. */
  reset() {
    this.chosen = [undefined, undefined]; // steps; undefined: the first on the left, the last on the right
    this.prompt = 0;
    this.slider.value = 50;
    this.frame.style.setProperty("--at", "50%");
    this.#arm(1);
  }

  show(pictures) {
    this.pictures = pictures;
    this.element.hidden = !pictures.length;
    if (pictures.length) this.#render();
    else this.strip.replaceChildren();
  }

  /** Which side the next click on the strip changes. */
  #arm(side) {
    this.armed = side;
    this.labels.forEach((label, i) => label.classList.toggle("soda-armed", i === side));
  }

  #name(picture) {
    return picture.step ? say("atStep", { step: picture.step }) : say("before");
  }

  #render() {
    const numbers = [...new Set(this.pictures.map((picture) => picture.prompt))];
    if (!numbers.includes(this.prompt)) this.prompt = numbers[0];
    const shown = this.pictures.filter((picture) => picture.prompt === this.prompt);
    const ends = [shown[0], shown.at(-1)];
    const pair = ends.map((end, side) => shown.find((picture) => picture.step === this.chosen[side]) ?? end);
    pair.forEach((picture, side) => {
      const address = this.address(picture);
      if (this.sides[side].getAttribute("src") !== address) this.sides[side].src = address;
      this.labels[side].textContent = this.#name(picture);
      this.labels[side].title = say("choosePicture");
    });
    this.frame.classList.toggle("soda-single", pair[0] === pair[1]);
    this.slider.title = say("slide");
    this.prompts.hidden = numbers.length < 2;
    this.prompts.replaceChildren(...numbers.map((prompt) => this.#tab(prompt)));
    const thumbs = new Map([...this.strip.children].map((thumb) => [thumb.dataset.address, thumb]));
    this.strip.replaceChildren(
      ...shown.map((picture) => {
        const thumb = thumbs.get(this.address(picture)) ?? this.#thumb(picture);
        thumb.classList.toggle("soda-chosen", pair.includes(picture));
        return thumb;
      }),
    );
  }

  #tab(prompt) {
    const tab = make("button", prompt === this.prompt ? "tab soda-armed" : "tab", String(prompt + 1));
    tab.title = say("promptNumber", { number: prompt + 1 });
    tab.addEventListener("click", () => {
      this.prompt = prompt;
      this.#render();
    });
    return tab;
  }

  #thumb(picture) {
    const image = make("img", "picture");
    image.src = this.address(picture);
    image.alt = this.#name(picture);
    const thumb = make("button", "thumb", [image, make("span", "step", picture.step ? String(picture.step) : "0")]);
    thumb.dataset.address = this.address(picture);
    thumb.title = this.#name(picture);
    thumb.addEventListener("click", () => {
      this.chosen[this.armed] = picture.step;
      this.#render();
    });
    return thumb;
  }
}
