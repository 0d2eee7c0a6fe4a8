"use strict";
// Two elements. <photo-drop> takes a photo, uploads it and tells the page with an event "photo".
// <photo-compare> shows two of its pictures over each other, at any size, with an edge between them that can be moved.

const element = (name, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
};
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const megabytes = bytes => `${Math.max(0.1, bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;

// What stands in <photo-drop> comes from the program, which replaces it after every try; so nothing in it is held on to.
class PhotoDrop extends HTMLElement {
  connectedCallback() {
    if (this.built) return;
    this.built = true;
    this.addEventListener("click", event => {
      const sample = event.target.closest("[data-sample]");
      if (sample) { this.say("Opening the sample …"); this.tell({ sample: sample.dataset.sample }); }
      else if (event.target.closest(".choose")) this.querySelector("input").click();
    });
    this.addEventListener("change", event => { this.take([...event.target.files]); event.target.value = ""; });
  }

  // the visible one of several on the page: photos dropped or pasted anywhere are its
  static visible() { return [...document.querySelectorAll("photo-drop")].find(one => one.offsetParent); }

  say(text, bad = false) {
    const message = this.querySelector(".message");
    message.textContent = text;
    message.classList.toggle("bad", bad);
  }

  tell(detail) { this.dispatchEvent(new CustomEvent("photo", { bubbles: true, detail })); }

  take(files) {
    if (this.request) return this.say("One moment, a photo is being uploaded.", true);
    if (!files.length) return;
    if (files.length > 1) return this.say(`${files.length} files are too many: one photo at a time.`, true);
    const [file] = files, limit = Number(this.getAttribute("limit"));
    if (file.size > limit)
      return this.say(`${file.name} has ${megabytes(file.size)}; the limit here is ${megabytes(limit)}.`, true);
    if (!file.size) return this.say(`${file.name} is empty.`, true);
    const form = new FormData(), request = this.request = new XMLHttpRequest();
    form.append("files", file);
    const failed = text => { this.request = null; this.say(text, true); };
    request.upload.onprogress = event => this.say(`Uploading ${file.name}: ${Math.round(100 * event.loaded / event.total)} %`);
    request.onerror = () => failed("The upload failed: the program cannot be reached. Is it still running?");
    request.onload = () => {
      if (request.status === 413) return failed(`${file.name} is larger than the limit of ${megabytes(limit)}.`);
      if (request.status !== 200) return failed(`The upload failed (${request.status}): ${request.responseText.slice(0, 200)}`);
      this.request = null;
      this.say(`Reading ${file.name} …`);
      this.tell({ path: JSON.parse(request.responseText)[0], name: file.name });
    };
    request.open("POST", "gradio_api/upload");
    request.send(form);
    this.say(`Uploading ${file.name} …`);
  }
}

const holdsFiles = event => [...event.dataTransfer?.types ?? []].includes("Files");
window.addEventListener("dragover", event => {
  if (!holdsFiles(event)) return;
  event.preventDefault();
  PhotoDrop.visible()?.classList.add("over");
});
for (const name of ["dragleave", "drop"])
  window.addEventListener(name, event => {
    if (name === "drop" || !event.relatedTarget) PhotoDrop.visible()?.classList.remove("over");
    if (name === "drop" && holdsFiles(event)) {
      event.preventDefault();
      PhotoDrop.visible()?.take([...event.dataTransfer.files]);
    }
  });
window.addEventListener("paste", event => {
  if (event.clipboardData?.files.length) PhotoDrop.visible()?.take([...event.clipboardData.files]);
});

// Where the edge and the cut stand is kept for a photo, so that a new result is looked at in the same place.
const views = new Map();

class PhotoCompare extends HTMLElement {
  static observedAttributes = ["pictures"];

  connectedCallback() {
    if (!this.shadowRoot) this.attachShadow({ mode: "open" });
    this.observer = new ResizeObserver(() => this.draw());
    this.start();
  }

  disconnectedCallback() { this.observer.disconnect(); }

  attributeChangedCallback() { if (this.isConnected && this.shadowRoot) queueMicrotask(() => this.start()); }

  start() {
    const given = this.getAttribute("pictures"), key = this.getAttribute("photo");
    if (this.shown === given) return;
    this.shown = given;
    this.width = Number(this.getAttribute("width"));
    this.height = Number(this.getAttribute("height"));
    this.pictures = JSON.parse(given);
    if (!views.has(key)) { views.clear(); views.set(key, { edge: 0.5, scale: null, x: 0.5, y: 0.5 }); }
    this.view = views.get(key);
    this.over = null;
    this.build();
    this.observer.disconnect();
    this.observer.observe(this.stage);
  }

  build() {
    const [left, right] = [this.pictures[0], this.pictures.at(-1)];
    this.stage = element("div", { className: "stage" });
    this.stage.style.setProperty("--shape", this.width / this.height);
    this.under = element("div", { className: "layer" }, this.image(right));
    this.stage.append(this.under);
    this.note = element("span", { className: "loading", textContent: "Loading the picture …" });
    if (this.pictures.length > 1) {
      this.over = element("div", { className: "layer" }, this.image(left));
      this.line = element("div", { className: "edge" });
      this.range = element("input", { type: "range", min: 0, max: 100, step: 0.5, className: "range" });
      this.range.setAttribute("aria-label", `${left.label} or ${right.label}: where the edge is`);
      this.range.addEventListener("input", () => { this.view.edge = this.range.value / 100; this.draw(); });
      this.leftLabel = element("span", { className: "label left", textContent: left.label });
      this.stage.append(this.over, this.line, this.range, this.leftLabel);
    }
    this.stage.append(element("span", { className: "label right", textContent: right.label }), this.note);
    this.percent = element("output", { className: "percent" });
    const bar = element("div", { className: "toolbar" },
      this.tool("Fit", "The whole photo", () => { this.view.scale = null; this.draw(); }),
      this.tool("100 %", "One pixel of the photo is one of the screen", () => this.zoom(1 / devicePixelRatio)),
      this.tool("−", "Smaller", () => this.zoom(this.scale() / 1.5)),
      this.percent,
      this.tool("+", "Larger", () => this.zoom(this.scale() * 1.5)));
    if (this.pictures.length > 2)
      bar.append(this.choice(this.pictures.slice(0, -1)));
    if (this.requestFullscreen)
      bar.append(this.tool("Full screen", "Full screen, and back", () =>
        document.fullscreenElement ? document.exitFullscreen() : this.requestFullscreen(), "last"));
    this.shadowRoot.replaceChildren(element("link", { rel: "stylesheet", href: "/page/compare.css" }), this.stage, bar);
    this.listen();
  }

  image({ label, src }) {
    const image = element("img", { src, alt: label, draggable: false, decoding: "async" });
    image.addEventListener("load", async () => {
      await image.decode().catch(() => {});                      // large ones take a while after they have come
      image.classList.add("ready");
      if ([...this.stage.querySelectorAll("img")].every(one => one.classList.contains("ready"))) this.note.remove();
    });
    image.addEventListener("error", () => { this.note.textContent = "This picture cannot be loaded any more: choose the photo again."; });
    return image;
  }

  tool(text, title, action, style = "") {
    const button = element("button", { type: "button", textContent: text, title, className: style });
    button.setAttribute("aria-label", title);
    button.addEventListener("click", action);
    return button;
  }

  // which of several pictures lies on the left
  choice(pictures) {
    const group = element("div", { className: "choice" });
    group.setAttribute("role", "group");
    group.setAttribute("aria-label", "Compared with");
    for (const picture of pictures) {
      const button = this.tool(picture.label, `Compare with: ${picture.label}`, () => {
        this.over.replaceChildren(this.image(picture));
        this.leftLabel.textContent = picture.label;
        for (const other of group.children) other.setAttribute("aria-pressed", other === button);
        this.draw();
      });
      button.setAttribute("aria-pressed", picture === this.pictures[0]);
      group.append(button);
    }
    return group;
  }

  fit() {
    const { clientWidth, clientHeight } = this.stage;
    return Math.min(clientWidth / this.width, clientHeight / this.height, 3 / devicePixelRatio);
  }

  // a photo smaller than the stage is enlarged to fit, and may be shown at its own size
  least() { return Math.min(this.fit(), 1 / devicePixelRatio); }

  scale() { return this.view.scale === null ? this.fit() : Math.max(this.view.scale, this.least()); }

  // to `scale` CSS pixels for a pixel of the photo, about a point of the stage
  zoom(scale, x = this.stage.clientWidth / 2, y = this.stage.clientHeight / 2) {
    const before = this.scale(), { clientWidth, clientHeight } = this.stage, view = this.view;
    scale = clamp(scale, this.least(), 16 / devicePixelRatio);
    view.x += (x - clientWidth / 2) * (1 / before - 1 / scale) / this.width;
    view.y += (y - clientHeight / 2) * (1 / before - 1 / scale) / this.height;
    view.scale = Math.abs(scale / this.fit() - 1) < 0.001 ? null : scale;
    this.draw();
  }

  draw() {
    const { clientWidth, clientHeight } = this.stage, view = this.view, scale = this.scale();
    if (!clientWidth) return;
    const wide = this.width * scale, high = this.height * scale;
    const half = [Math.min(0.5, clientWidth / 2 / wide), Math.min(0.5, clientHeight / 2 / high)];
    view.x = clamp(view.x, half[0], 1 - half[0]);
    view.y = clamp(view.y, half[1], 1 - half[1]);
    const left = clientWidth / 2 - view.x * wide, top = clientHeight / 2 - view.y * high;
    for (const image of this.stage.querySelectorAll("img")) {
      image.style.cssText = `width:${this.width}px;height:${this.height}px;transform:translate(${left}px,${top}px) scale(${scale})`;
      image.classList.toggle("pixels", scale * devicePixelRatio >= 3);
    }
    this.stage.classList.toggle("zoomed", scale > this.fit());
    this.percent.textContent = `${Math.round(100 * scale * devicePixelRatio)} %`;
    if (!this.over) return;
    // the edge runs over what is seen of the photo, not over the empty margins beside it
    const from = Math.max(0, left), to = Math.min(clientWidth, left + wide), at = from + view.edge * (to - from);
    this.over.style.clipPath = `inset(0 ${clientWidth - at}px 0 0)`;
    this.line.style.left = `${at}px`;
    this.range.value = view.edge * 100;
    this.span = [from, to, at];
  }

  listen() {
    const stage = this.stage, points = new Map();
    let dragging = null, apart = 0;
    const place = event => { const box = stage.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
    const distance = () => { const [[a, b], [c, d]] = points.values(); return Math.hypot(a - c, b - d); };
    stage.addEventListener("pointerdown", event => {
      if (event.button) return;
      stage.setPointerCapture(event.pointerId);
      points.set(event.pointerId, place(event));
      if (points.size === 2) { dragging = "pinch"; apart = distance(); return; }
      const [x] = place(event);
      // at full view there is nothing to push about, so all of the photo moves the edge
      dragging = this.over && (this.scale() <= this.fit() || Math.abs(x - this.span[2]) < 24) ? "edge" : "photo";
      if (dragging === "edge") this.moveEdge(x);
    });
    stage.addEventListener("pointermove", event => {
      if (!points.has(event.pointerId)) return;
      const [x, y] = place(event), [oldX, oldY] = points.get(event.pointerId);
      points.set(event.pointerId, [x, y]);
      if (dragging === "pinch" && points.size === 2) {
        const now = distance(), [[a, b], [c, d]] = points.values();
        this.zoom(this.scale() * now / apart, (a + c) / 2, (b + d) / 2);
        apart = now;
      } else if (dragging === "edge") this.moveEdge(x);
      else if (dragging === "photo") {
        this.view.x -= (x - oldX) / this.scale() / this.width;
        this.view.y -= (y - oldY) / this.scale() / this.height;
        this.draw();
      }
    });
    const end = event => { points.delete(event.pointerId); if (!points.size) dragging = null; };
    stage.addEventListener("pointerup", end);
    stage.addEventListener("pointercancel", end);
    stage.addEventListener("wheel", event => {
      event.preventDefault();
      this.zoom(this.scale() * Math.exp(-clamp(event.deltaY, -100, 100) / 300), ...place(event));
    }, { passive: false });
    stage.addEventListener("dblclick", event => {
      if (this.view.scale === null) this.zoom(Math.max(1 / devicePixelRatio, 2 * this.fit()), ...place(event));
      else { this.view.scale = null; this.draw(); }
    });
  }

  moveEdge(x) {
    this.view.edge = clamp((x - this.span[0]) / (this.span[1] - this.span[0]), 0, 1);
    this.draw();
  }
}

customElements.define("photo-drop", PhotoDrop);
customElements.define("photo-compare", PhotoCompare);
