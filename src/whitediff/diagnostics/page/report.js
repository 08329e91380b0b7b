"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const [ny, nx] = data.shape;
  const [y0, x0] = data.origin;

  // ---- small helpers -------------------------------------------------------------------------

  /** Element with attributes and children; texts become text nodes, so nothing is ever parsed. */
  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "on") for (const [event, f] of Object.entries(value)) element.addEventListener(event, f);
      else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  }

  const svgNode = (tag, attributes, ...children) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };

  const known = (value) => value !== null && value !== undefined;
  const whole = new Intl.NumberFormat("en");
  const count = (n, one, many = `${one}s`) => `${whole.format(n)} ${n === 1 ? one : many}`;
  function number(value, digits = 4) {
    if (!known(value)) return "–";
    const size = Math.abs(value);
    const text = size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential(Math.max(1, digits - 2)) : String(Number(value.toPrecision(digits)));
    return text.replace("-", "−");
  }
  /** Number with its error, to two digits of the error. */
  function measured(value, error) {
    if (!known(value) || !known(error) || !(error > 0)) return number(value);
    const decimals = Math.max(0, 1 - Math.floor(Math.log10(error)));
    return `${value.toFixed(decimals).replace("-", "−")} ± ${error.toFixed(decimals)}`;
  }
  const signed = (value, digits) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits);
  const heading = (id, text) => make("h2", { id: `${id}-title` }, text);
  const missing = (text) => make("p", { class: "soft" }, text);

  const tooltip = byId("tooltip");
  function tell(text, event) {
    tooltip.hidden = !text;
    if (!text) return;
    tooltip.textContent = text;
    const left = Math.min(event.clientX + 14, innerWidth - tooltip.offsetWidth - 8);
    const top = Math.min(event.clientY + 14, innerHeight - tooltip.offsetHeight - 8);
    tooltip.style.left = `${Math.max(4, left)}px`;
    tooltip.style.top = `${Math.max(4, top)}px`;
  }

  // ---- theme ---------------------------------------------------------------------------------

  const theme = byId("theme");
  function setTheme(dark) {
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    theme.setAttribute("aria-pressed", String(dark));
  }
  const preference = matchMedia("(prefers-color-scheme: dark)");
  setTheme(preference.matches);
  preference.addEventListener("change", (event) => setTheme(event.matches));
  theme.addEventListener("click", () => setTheme(document.documentElement.dataset.theme !== "dark"));

  byId("name").textContent = data.name;
  byId("name").title = data.files.map((file) => `${file.what}: ${file.name}`).join("\n");

  // ---- verdict -------------------------------------------------------------------------------

  (() => {
    const section = byId("verdict");
    const lists = [make("ul", { class: "checks" }), make("ul", { class: "checks" })];
    const order = { bad: 0, doubtful: 1, good: 2, unknown: 3 };
    const words = { good: "fine", doubtful: "worth a look", bad: "bad", unknown: "not known" };
    for (const check of [...data.checks].sort((a, b) => order[a.status] - order[b.status])) {
      lists[order[check.status] > 1 ? 1 : 0].append(make("li", { class: check.status, title: check.reason },
        make("div", { class: "line" },
          make("span", { class: "light", "aria-hidden": true }),
          make("span", { class: "label" }, check.name),
          make("span", { class: "value" }, check.value),
          make("span", { class: "hidden" }, `: ${words[check.status]}; fine: `),
          make("span", { class: "accepted" }, check.accepted)),
        make("div", { class: "reason" }, check.reason)));
    }
    const verdict = data.verdict;
    const explain = make("button", { type: "button", "aria-pressed": "false" }, "Explain all");
    explain.addEventListener("click", () => {
      for (const list of lists) explain.setAttribute("aria-pressed", String(list.classList.toggle("all")));
    });
    section.append(
      make("div", { class: `headline ${verdict.status}` },
        make("span", { class: "light", "aria-hidden": true }),
        make("h2", { id: "verdict-title" }, verdict.headline),
        make("span", { style: "flex: 1 1 20rem" }, verdict.text), explain),
      ...lists,
      ...(data.depth ? [make("p", {}, data.depth.text)] : []),
      make("p", { class: "soft small", style: "margin:.35rem 0 0" }, "Beside each number: the range with which it is fine, here widened by four of its sampling errors. A circle is fine, a square worth a look, a diamond bad."));
    for (const note of data.notes) section.append(make("p", { class: "note" }, note));
  })();

  // ---- images --------------------------------------------------------------------------------

  const COLOURS = { positive: "#22d3ff", negative: "#ffab2e", star: "#5ee06b", rejected: "#ff6b6b" };
  const found = data.detections;
  const view = { u: nx / 2, v: ny / 2, zoom: 0 };
  const shown = { detections: true, stars: false, flags: false };
  const panels = [];
  let selected = -1;
  let hovered = -1;
  let fitZoom = 1;
  let scheduled = false;

  const toDisplay = (x, y) => [x - x0 + 0.5, ny - (y - y0 + 0.5)];
  const toPixel = (u, v) => [u - 0.5 + x0, ny - v - 0.5 + y0];

  function skyAt(x, y) {
    const sky = data.image.sky;
    if (!sky) return null;
    const n = sky.n;
    const a = (x - x0) / Math.max(1, nx - 1) * (n - 1);
    const b = (y - y0) / Math.max(1, ny - 1) * (n - 1);
    const i = Math.max(0, Math.min(n - 2, Math.floor(a)));
    const j = Math.max(0, Math.min(n - 2, Math.floor(b)));
    const vector = [0, 1, 2].map((k) => {
      const at = (q, p) => sky.vectors[q][p][k];
      const lower = at(j, i) + (at(j, i + 1) - at(j, i)) * (a - i);
      const upper = at(j + 1, i) + (at(j + 1, i + 1) - at(j + 1, i)) * (a - i);
      return lower + (upper - lower) * (b - j);
    });
    const ra = (Math.atan2(vector[1], vector[0]) * 180 / Math.PI + 360) % 360;
    return [ra, Math.atan2(vector[2], Math.hypot(vector[0], vector[1])) * 180 / Math.PI];
  }

  /** Unit vectors of north and east on the display, at the middle of the frame. */
  function compass() {
    const middle = [x0 + nx / 2, y0 + ny / 2];
    const sky = skyAt(...middle);
    if (!sky || Math.abs(sky[1]) > 89.9) return null;
    const step = Math.max(1, Math.min(nx, ny) / 50);
    const gradient = [[step, 0], [0, step]].map(([dx, dy]) => {
      const other = skyAt(middle[0] + dx, middle[1] + dy);
      const across = ((other[0] - sky[0] + 540) % 360 - 180) * Math.cos(sky[1] * Math.PI / 180);
      return [across / step, (other[1] - sky[1]) / step];
    });
    const [[ex, nxx], [ey, nyy]] = gradient;
    const determinant = ex * nyy - ey * nxx;
    if (!determinant) return null;
    const unit = (a, b) => { const r = Math.hypot(a, b); return [a / r, -b / r]; };
    return { north: unit(-ey / determinant, ex / determinant), east: unit(nyy / determinant, -nxx / determinant) };
  }

  function schedule() {
    if (!scheduled) { scheduled = true; requestAnimationFrame(drawAll); }
  }

  function limits() {
    view.zoom = Math.min(Math.max(view.zoom, fitZoom * 0.8), 48);
    view.u = Math.min(Math.max(view.u, 0), nx);
    view.v = Math.min(Math.max(view.v, 0), ny);
  }

  function zoomBy(factor, u = view.u, v = view.v) {
    const before = view.zoom;
    view.zoom *= factor;
    limits();
    const ratio = before / view.zoom;
    view.u = u + (view.u - u) * ratio;
    view.v = v + (view.v - v) * ratio;
    limits();
    schedule();
  }

  function fit() {
    view.u = nx / 2; view.v = ny / 2; view.zoom = fitZoom;
    schedule();
  }

  function lookAt(x, y, zoom = 8) {
    [view.u, view.v] = toDisplay(x, y);
    view.zoom = Math.max(zoom, fitZoom);
    limits();
    schedule();
  }

  function layout() {
    if (!panels.length) return;
    const box = byId("panels");
    const alone = box.dataset.alone !== undefined;
    const columns = alone ? 1 : Math.max(1, Math.min(panels.length, Math.floor(box.clientWidth / 250)));
    box.style.setProperty("--columns", columns);
    const width = (box.clientWidth - 8 * (columns - 1)) / columns;
    const height = Math.max(160, Math.min(width * ny / nx, innerHeight * (alone ? 0.78 : 0.62)));
    box.style.setProperty("--height", `${Math.round(height)}px`);
    const old = fitZoom;
    fitZoom = Math.min(width / nx, height / ny);
    if (!view.zoom || Math.abs(view.zoom - old) < 1e-9) view.zoom = fitZoom;
    limits();
    schedule();
  }

  function sized(canvas) {
    const ratio = devicePixelRatio || 1;
    const width = Math.round(canvas.clientWidth * ratio), height = Math.round(canvas.clientHeight * ratio);
    if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, canvas.clientWidth, canvas.clientHeight);
    // From display coordinates of the frame to the canvas.
    context.translate(canvas.clientWidth / 2 - view.u * view.zoom, canvas.clientHeight / 2 - view.v * view.zoom);
    return context;
  }

  function drawAll() {
    scheduled = false;
    for (const panel of panels) if (panel.canvas.offsetParent !== null) { drawImage(panel); drawOverlay(panel); }
    byId("scale").textContent = view.zoom >= 1 ? `${number(view.zoom, 2)} screen pixels per pixel` : `${number(1 / view.zoom, 2)} pixels per screen pixel`;
  }

  function drawImage(panel) {
    const context = sized(panel.canvas);
    const bin = data.image.bin, zoom = view.zoom;
    if (!panel.image.complete || !panel.image.naturalWidth) return;
    const w = panel.image.naturalWidth * bin, h = panel.image.naturalHeight * bin;
    context.save();
    context.beginPath();
    context.rect(0, 0, nx * zoom, ny * zoom);
    context.clip();
    context.imageSmoothingEnabled = zoom * bin < 2;
    context.imageSmoothingQuality = "high";
    // The first row of groups of pixels is the lowest; the topmost may reach beyond the frame.
    context.drawImage(panel.image, 0, (ny - h) * zoom, w * zoom, h * zoom);
    if (panel.stamps && bin > 1 && zoom > 1.2) {
      const s = data.image.stamps, half = (s.side - 1) / 2;
      context.imageSmoothingEnabled = false;
      s.x.forEach((x, i) => {
        const left = (Math.round(x) - x0 - half) * zoom, top = (ny - (Math.round(s.y[i]) - y0 + half + 1)) * zoom;
        context.drawImage(panel.stamps, (i % s.columns) * s.side, Math.floor(i / s.columns) * s.side, s.side, s.side,
          left, top, s.side * zoom, s.side * zoom);
      });
    }
    context.restore();
  }

  function drawOverlay(panel) {
    const context = sized(panel.overlay);
    const zoom = view.zoom;
    if (shown.flags && flagImage.complete && flagImage.naturalWidth) {
      const bin = data.image.bin, w = flagImage.naturalWidth * bin, h = flagImage.naturalHeight * bin;
      context.globalAlpha = 0.5;
      context.imageSmoothingEnabled = false;
      context.drawImage(flagImage, 0, (ny - h) * zoom, w * zoom, h * zoom);
      context.globalAlpha = 1;
    }
    const stars = data.stars;
    if (shown.stars && stars) {
      context.lineWidth = 1.2;
      stars.x.forEach((x, i) => {
        if (!stars.candidate[i]) return;
        const [u, v] = toDisplay(x, stars.y[i]);
        const used = stars.reason[i] === "used";
        context.strokeStyle = used ? COLOURS.star : COLOURS.rejected;
        context.beginPath();
        const r = 4;
        if (used) { context.moveTo(u * zoom - r, v * zoom); context.lineTo(u * zoom + r, v * zoom); context.moveTo(u * zoom, v * zoom - r); context.lineTo(u * zoom, v * zoom + r); }
        else { context.moveTo(u * zoom - r, v * zoom - r); context.lineTo(u * zoom + r, v * zoom + r); context.moveTo(u * zoom - r, v * zoom + r); context.lineTo(u * zoom + r, v * zoom - r); }
        context.stroke();
      });
    }
    if (shown.detections && found) {
      const radius = Math.max(found.total > 400 ? 3 : 6, 0.16 * data.image.stamps.side * zoom);
      found.x.forEach((x, i) => {
        const [u, v] = toDisplay(x, found.y[i]);
        context.lineWidth = i === selected ? 3 : i === hovered ? 2.4 : 1.3;
        context.strokeStyle = found.significance[i] < 0 ? COLOURS.negative : COLOURS.positive;
        context.beginPath();
        if (/dipole|artifact/.test(found.class[i])) context.rect(u * zoom - radius, v * zoom - radius, 2 * radius, 2 * radius);
        else context.arc(u * zoom, v * zoom, radius, 0, 2 * Math.PI);
        context.stroke();
        if (i === selected) { context.beginPath(); context.arc(u * zoom, v * zoom, radius + 5, 0, 2 * Math.PI); context.lineWidth = 1.2; context.stroke(); }
      });
    }
    if (panel === panels[0] && directions) {
      context.setTransform(devicePixelRatio || 1, 0, 0, devicePixelRatio || 1, 0, 0);
      const middle = [34, panel.overlay.clientHeight - 34], length = 20;
      context.lineWidth = 1.4; context.strokeStyle = context.fillStyle = "#ffe27a";
      context.font = "11px sans-serif"; context.textAlign = "center"; context.textBaseline = "middle";
      context.shadowColor = "#000"; context.shadowBlur = 3;
      for (const [letter, [a, b]] of [["N", directions.north], ["E", directions.east]]) {
        context.beginPath(); context.moveTo(...middle); context.lineTo(middle[0] + a * length, middle[1] + b * length); context.stroke();
        context.fillText(letter, middle[0] + a * (length + 8), middle[1] + b * (length + 8));
      }
      context.shadowBlur = 0;
    }
  }

  function nearest(panel, event) {
    if (!found || !shown.detections) return -1;
    const [u, v] = place(panel, event);
    let best = -1, least = 14 / view.zoom + 0.15 * data.image.stamps.side;
    found.x.forEach((x, i) => {
      const [a, b] = toDisplay(x, found.y[i]);
      const distance = Math.hypot(a - u, b - v);
      if (distance < least) { least = distance; best = i; }
    });
    return best;
  }

  function place(panel, event) {
    const box = panel.overlay.getBoundingClientRect();
    return [view.u + (event.clientX - box.left - box.width / 2) / view.zoom, view.v + (event.clientY - box.top - box.height / 2) / view.zoom];
  }

  function describe(i) {
    const row = found.rows[i];
    const lines = [`${row ? `#${row.id}` : "not in the table"}${found.class[i] ? `, ${found.class[i]}` : ""}`, `significance ${known(found.significance[i]) ? signed(found.significance[i], 1) : "–"}`];
    if (row && row.flags.length) lines.push(row.flags.join(", "));
    return lines.join("\n");
  }

  function attach(panel) {
    const canvas = panel.overlay;
    let last = null, moved = 0, active = false, pointers = new Map(), spread = 0;
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, event);
      last = event; moved = 0; active = true; spread = 0;
      canvas.focus({ preventScroll: true });
    });
    canvas.addEventListener("pointermove", (event) => {
      if (pointers.has(event.pointerId)) {
        pointers.set(event.pointerId, event);
        if (pointers.size === 2) {
          const [a, b] = [...pointers.values()];
          const now = Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY);
          if (spread) zoomBy(now / spread);
          spread = now; moved = 99;
          return;
        }
        const dx = event.clientX - last.clientX, dy = event.clientY - last.clientY;
        moved += Math.abs(dx) + Math.abs(dy);
        last = event;
        if (moved > 3) { view.u -= dx / view.zoom; view.v -= dy / view.zoom; limits(); schedule(); }
      } else {
        const i = nearest(panel, event);
        if (i !== hovered) { hovered = i; schedule(); }
        tell(i >= 0 ? describe(i) : "", event);
        canvas.style.cursor = i >= 0 ? "pointer" : "";
      }
      const [u, v] = place(panel, event);
      const [x, y] = toPixel(u, v);
      const sky = skyAt(x, y);
      byId("readout").textContent = u < 0 || v < 0 || u > nx || v > ny ? "" :
        `x ${x.toFixed(1)}  y ${y.toFixed(1)}` + (sky ? `   RA ${sky[0].toFixed(5)}°  Dec ${signed(sky[1], 5)}°` : "");
    });
    const release = (event) => {
      if (!pointers.delete(event.pointerId)) return;
      if (event.type === "pointerup" && moved <= 3) {
        const i = nearest(panel, event);
        if (i >= 0) choose(i, true);
      }
    };
    canvas.addEventListener("pointerup", release);
    canvas.addEventListener("pointercancel", release);
    canvas.addEventListener("pointerleave", () => { active = false; hovered = -1; tell(""); byId("readout").textContent = ""; schedule(); });
    canvas.addEventListener("dblclick", (event) => { event.preventDefault(); zoomBy(event.shiftKey ? 0.5 : 2, ...place(panel, event)); });
    canvas.addEventListener("wheel", (event) => {
      if (!active && !event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      zoomBy(Math.exp(-Math.sign(event.deltaY) * Math.min(60, Math.abs(event.deltaY)) / 180), ...place(panel, event));
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      const step = 60 / view.zoom;
      const keys = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
      if (keys[event.key]) { view.u += keys[event.key][0]; view.v += keys[event.key][1]; limits(); schedule(); }
      else if (event.key === "+" || event.key === "=") zoomBy(1.5);
      else if (event.key === "-") zoomBy(1 / 1.5);
      else if (event.key === "0") fit();
      else return;
      event.preventDefault();
    });
  }

  const flagImage = new Image();
  const directions = compass();

  (() => {
    const section = byId("images");
    const image = data.image;
    const box = make("div", { class: "panels", id: "panels" });
    const style = make("style");
    const rules = [];
    for (const plane of image.planes) {
      const canvas = make("canvas", { class: "picture", "data-plane": plane.key, "aria-hidden": true });
      const overlay = make("canvas", {
        class: "overlay", tabindex: 0, role: "img",
        "aria-label": `${plane.label}; drag or arrow keys to move, plus and minus to zoom, 0 for all`,
      });
      const alone = make("button", { type: "button", title: "This one alone", "aria-pressed": "false" }, "⤢");
      const figure = make("figure", { class: "panel" },
        make("figcaption", {}, make("span", {}, plane.label), alone),
        make("div", { class: "stack" }, canvas, overlay));
      alone.addEventListener("click", () => {
        const on = !figure.classList.contains("alone");
        for (const other of box.children) { other.classList.remove("alone"); other.querySelector("button").setAttribute("aria-pressed", "false"); }
        figure.classList.toggle("alone", on);
        alone.setAttribute("aria-pressed", String(on));
        if (on) box.dataset.alone = ""; else delete box.dataset.alone;
        layout();
      });
      box.append(figure);
      const panel = { canvas, overlay, image: new Image(), stamps: null };
      panel.image.addEventListener("load", schedule);
      panel.image.dataset.plane = plane.key;
      panel.image.src = plane.src;
      if (plane.stamps) {
        panel.stamps = new Image();
        panel.stamps.addEventListener("load", schedule);
        panel.stamps.src = plane.stamps;
        rules.push(`.cut-${plane.key}{background-image:url(${plane.stamps})}`);
      }
      attach(panel);
      panels.push(panel);
    }
    style.textContent = rules.join("\n");
    document.head.append(style);
    flagImage.addEventListener("load", schedule);
    flagImage.src = image.flags;

    const toggle = (name, label, enabled = true) => {
      const input = make("input", { type: "checkbox", id: `show-${name}`, disabled: !enabled });
      input.checked = shown[name] && enabled;
      input.addEventListener("change", () => { shown[name] = input.checked; schedule(); });
      return make("label", {}, input, label);
    };
    const contrast = make("input", { type: "range", min: 0, max: 2, step: 0.05, value: 0, id: "contrast" });
    const invert = make("input", { type: "checkbox" });
    const zero = image.ticks.find((tick) => tick[0] === 0)[1];
    const filter = () => {
      const c = 2 ** Number(contrast.value);
      // What is zero keeps its grey while the contrast grows.
      const bright = 1 + (0.5 / zero - 1) * (1 - 1 / c);
      for (const panel of panels) panel.canvas.style.filter = `brightness(${bright}) contrast(${c})${invert.checked ? " invert(1)" : ""}`;
    };
    contrast.addEventListener("input", filter);
    invert.addEventListener("change", filter);
    const ramp = make("span", { class: "ramp" });
    for (const [value, where] of image.ticks) ramp.append(make("span", { style: `left:${100 * where}%` }, `${value < 0 ? "−" : ""}${Math.abs(value)}${value === 0 ? "" : "σ"}`));
    section.append(
      heading("images", "Images"),
      make("div", { class: "bar" },
        make("button", { type: "button", id: "zoom-in", on: { click: () => zoomBy(1.6) } }, "+", make("span", { class: "hidden" }, " zoom in")),
        make("button", { type: "button", id: "zoom-out", on: { click: () => zoomBy(1 / 1.6) } }, "−", make("span", { class: "hidden" }, " zoom out")),
        make("button", { type: "button", id: "zoom-fit", on: { click: fit } }, "All"),
        make("button", { type: "button", id: "zoom-one", on: { click: () => { view.zoom = 1; limits(); schedule(); } } }, "1:1"),
        make("span", { class: "soft small", id: "scale" }),
        toggle("detections", "detections", Boolean(found)),
        toggle("stars", "kernel stars", Boolean(data.stars)),
        toggle("flags", "mask"),
        make("label", {}, "contrast", contrast),
        make("label", {}, invert, "inverted"),
        make("span", { class: "gap" }),
        make("span", { class: "readout small", id: "readout" })),
      box,
      make("div", { class: "bar", style: "margin:.4rem 0 0" },
        make("span", { class: "rampbox", "aria-label": "grey levels" }, ramp),
        make("span", { class: "legend small" },
          found ? make("span", {}, make("span", { class: "swatch", style: `background:${COLOURS.positive}` }), "positive") : null,
          found ? make("span", {}, make("span", { class: "swatch", style: `background:${COLOURS.negative}` }), "negative (square: dipole or artifact)") : null,
          data.stars ? make("span", {}, make("span", { class: "swatch", style: `background:${COLOURS.star}` }), "star used") : null,
          data.stars ? make("span", {}, make("span", { class: "swatch", style: `background:${COLOURS.rejected}` }), "star rejected") : null,
          ...image.flag_legend.map((flag) => make("span", {}, make("span", { class: "swatch", style: `background:${flag.colour}` }), `${flag.label} (${number(100 * flag.fraction, 2)} %)`)))),
      make("p", { class: "soft small" },
        `All at the same stretch, less the sky of science image and template, in units of the noise of the ${data.kind === "score" ? "science image" : "difference"}, σ = ${number(image.sigma)}${data.unit ? ` ${data.unit}` : ""}`,
        image.planes.some((plane) => plane.key === "score") ? "; the score is S/√V. " : ". ",
        image.bin > 1 ? `Shown are means of ${image.bin} × ${image.bin} pixels; single pixels around the listed detections and the worst stars. ` : "Single pixels are shown. ",
        "Drag to move, double-click to zoom (with shift: out), or click once and turn the wheel."));
    layout();
    addEventListener("resize", layout);
  })();

  // ---- cut-outs ------------------------------------------------------------------------------

  function cutouts(i, size) {
    const s = data.image.stamps, scale = size / s.side;
    return data.image.planes.filter((plane) => plane.stamps).map((plane) => make("span", {
      class: `cut cut-${plane.key}`, role: "img", "aria-label": plane.label, title: plane.label,
      style: `width:${size}px;height:${size}px;background-size:${s.columns * size}px auto;` +
        `background-position:${-(i % s.columns) * s.side * scale}px ${-Math.floor(i / s.columns) * s.side * scale}px`,
    }));
  }

  // ---- detections ----------------------------------------------------------------------------

  const rowOf = [];

  function choose(i, scroll) {
    if (rowOf[selected]) rowOf[selected].classList.remove("chosen");
    selected = i;
    const row = rowOf[i];
    if (row) {
      row.classList.add("chosen");
      if (scroll) row.scrollIntoView({ block: "center", behavior: "smooth" });
    }
    schedule();
  }

  /** Table whose columns sort when their headings are clicked. */
  function sortable(columns, rows, attributes) {
    const body = make("tbody");
    const head = make("tr");
    let items = rows.map((row, i) => ({ row, i, node: null }));
    const fill = () => body.append(...items.map((item) => item.node));
    columns.forEach((column) => {
      const th = make("th", { scope: "col", class: column.text ? "text" : null, title: column.description || null });
      if (!column.key) th.append(column.label);
      else {
        const button = make("button", { type: "button" }, column.label);
        th.setAttribute("aria-sort", "none");
        button.addEventListener("click", () => {
          const up = th.getAttribute("aria-sort") === "descending" || (th.getAttribute("aria-sort") === "none" && column.text);
          for (const other of head.children) if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
          th.setAttribute("aria-sort", up ? "ascending" : "descending");
          const sign = up ? 1 : -1;
          items.sort((a, b) => {
            const p = column.key(a.row, a.i), q = column.key(b.row, b.i);
            if (!known(p) || !known(q)) return Number(!known(p)) - Number(!known(q)) || a.i - b.i;
            return (p < q ? -sign : p > q ? sign : 0) || a.i - b.i;
          });
          fill();
        });
        th.append(button);
      }
      head.append(th);
    });
    items.forEach((item) => {
      item.node = make("tr", {});
      for (const column of columns) {
        const content = column.cell(item.row, item.i);
        item.node.append(make("td", { class: column.wrap ? "text wrap" : column.text ? "text" : null }, ...(Array.isArray(content) ? content : [content])));
      }
    });
    fill();
    return { node: make("table", attributes, make("thead", {}, head), body), rows: items.map((item) => item.node) };
  }

  (() => {
    const section = byId("detections");
    section.append(heading("detections", "Detections"));
    if (!found) {
      section.append(missing(data.kind === "score" ? "Give a catalogue with --catalog to see its sources here." : "No catalogue was given, and none could be made."));
      return;
    }
    const expected = !found.headline && known(found.expected_false) ? ` White noise alone would give ${number(found.expected_false, 2)} of each sign.` : "";
    const classes = found.classes.map(([name, n]) => `${name} ${whole.format(n)}`).join(", ");
    section.append(...(found.headline ? [make("p", {}, found.headline)] : []), make("p", {}, `${count(found.total, "source")} above ${number(found.threshold, 3)}σ: ${whole.format(found.positive)} positive, ${whole.format(found.negative)} negative${classes ? ` (${classes})` : ""}.${expected}`,
      found.total > found.rows.length ? ` The table has the ${found.rows.length} most significant.` : "",
      found.total > found.x.length ? ` The ${whole.format(found.x.length)} most significant are drawn.` : ""));
    if (!found.rows.length) return;
    const labels = { significance: "signif.", psf_flux: "flux", psf_flux_err: "± flux", psf_mag: "mag", psf_mag_err: "± mag", psf_chi2: "χ²", dipole_separation: "dipole sep." };
    const fixed = { x: 1, y: 1, ra: 5, dec: 5, significance: 1, psf_mag: 2, psf_mag_err: 2, psf_chi2: 2, dipole_separation: 2 };
    const flux = (value, error) => known(value) && known(error) ? measured(value, error).split(" ± ")[0] : number(value, 5);
    const columns = [{ label: "cut-outs", text: true, cell: (row, i) => make("span", { style: "white-space:nowrap" }, ...cutouts(i, 44)), description: data.image.planes.map((plane) => plane.label).join(", ") }];
    for (const column of found.columns) {
      if (!found.rows.some((row) => known(row[column.name]))) continue;
      columns.push({
        label: `${labels[column.name] || column.name}${column.unit && !["id", "x", "y"].includes(column.name) ? ` [${column.unit}]` : ""}`,
        description: column.description || column.name,
        key: (row) => row[column.name],
        cell: (row) => /^psf_flux/.test(column.name) ? flux(row[column.name], row.psf_flux_err) : known(row[column.name]) ? (column.name in fixed ? row[column.name].toFixed(fixed[column.name]).replace("-", "−") : number(row[column.name], 5)) : "–",
      });
    }
    if (found.classes.length) columns.push({ label: "class", text: true, key: (row) => row.class, cell: (row) => row.class });
    columns.push({ label: "flags", text: true, wrap: true, key: (row) => row.flags.join(" "), cell: (row) => row.flags.map((flag) => make("span", { class: "tag" }, flag)) });
    const table = sortable(columns, found.rows, { id: "table" });
    table.rows.forEach((node, i) => {
      rowOf[i] = node;
      node.addEventListener("click", () => { choose(i, false); lookAt(found.x[i], found.y[i]); byId("images").scrollIntoView({ behavior: "smooth" }); });
      node.addEventListener("pointerenter", () => { hovered = i; schedule(); });
    });
    section.append(make("p", { class: "soft small" }, "Click a heading to sort, a row to see the place on the images."),
      make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Detections" }, table.node));
  })();

  // ---- charts --------------------------------------------------------------------------------

  function niceTicks(low, high, log) {
    if (log) {
      const ticks = [];
      for (let k = Math.floor(Math.log10(low)); k <= Math.ceil(Math.log10(high)); k++) for (const m of [1, 2, 5]) { const t = m * 10 ** k; if (t >= low * 0.999 && t <= high * 1.001) ticks.push(t); }
      if (ticks.length > 7) return ticks.filter((t) => Math.abs(Math.log10(t) - Math.round(Math.log10(t))) < 1e-9);
      if (ticks.length > 2) return ticks;
    }
    const rough = (high - low) / 5, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
    const ticks = [];
    for (let t = Math.ceil(low / step) * step; t <= high + step * 1e-6; t += step) ticks.push(Math.abs(t) < step * 1e-6 ? 0 : t);
    return ticks;
  }

  /** Picture of some series; axes: {label, log, low, high}, series: {kind, x, y, error, name, style}. */
  function chart(title, xAxis, yAxis, series, { lines = [], band = null, note = "", square = false } = {}) {
    const width = 430, height = square ? 330 : 260;
    const margin = { left: 58, right: 12, top: 8, bottom: 38 };
    const all = (axis, pick) => {
      let values = series.flatMap((s) => s[pick].filter((v) => known(v) && (!axis.log || v > 0)));
      if (!values.length) values = [axis.log ? 0.1 : 0, 1];
      let low = known(axis.low) ? axis.low : values.reduce((a, b) => Math.min(a, b)), high = known(axis.high) ? axis.high : values.reduce((a, b) => Math.max(a, b));
      if (!(high > low)) { low = axis.log ? low / 2 : low - 1; high = axis.log ? high * 2 : high + 1; }
      if (axis.log) { const pad = (high / low) ** 0.04; return [known(axis.low) ? low : low / pad, known(axis.high) ? high : high * pad]; }
      const pad = 0.04 * (high - low);
      return [known(axis.low) ? low : low - pad, known(axis.high) ? high : high + pad];
    };
    const [xLow, xHigh] = all(xAxis, "x"), [yLow, yHigh] = all(yAxis, "y");
    const scale = (axis, low, high, from, to) => (value) => {
      const part = axis.log ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low);
      return from + Math.min(1.02, Math.max(-0.02, part)) * (to - from);
    };
    const sx = scale(xAxis, xLow, xHigh, margin.left, width - margin.right);
    const sy = scale(yAxis, yLow, yHigh, height - margin.bottom, margin.top);
    const svg = svgNode("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title}: ${yAxis.label} against ${xAxis.label}` });
    for (const t of niceTicks(xLow, xHigh, xAxis.log)) {
      svg.append(svgNode("line", { class: "grid", x1: sx(t), x2: sx(t), y1: margin.top, y2: height - margin.bottom }),
        svgNode("text", { class: "tick", x: sx(t), y: height - margin.bottom + 14, "text-anchor": "middle" }, number(t, 6)));
    }
    for (const t of niceTicks(yLow, yHigh, yAxis.log)) {
      svg.append(svgNode("line", { class: "grid", y1: sy(t), y2: sy(t), x1: margin.left, x2: width - margin.right }),
        svgNode("text", { class: "tick", x: margin.left - 6, y: sy(t) + 4, "text-anchor": "end" }, number(t, 6)));
    }
    if (band) svg.append(svgNode("rect", { class: "band", x: margin.left, width: width - margin.left - margin.right, y: sy(band[1]), height: Math.max(0, sy(band[0]) - sy(band[1])) }));
    for (const y of lines) if (y >= yLow && y <= yHigh) svg.append(svgNode("line", { class: "reference", x1: margin.left, x2: width - margin.right, y1: sy(y), y2: sy(y) }));
    for (const s of series) {
      const group = svgNode("g", { class: s.style || "first" });
      const usable = s.x.map((x, i) => i).filter((i) => known(s.x[i]) && known(s.y[i]) && (!yAxis.log || s.y[i] > 0) && (!xAxis.log || s.x[i] > 0));
      if (s.kind === "line") group.append(svgNode("path", { class: "curve", d: usable.map((i, k) => `${k ? "L" : "M"}${sx(s.x[i]).toFixed(1)} ${sy(s.y[i]).toFixed(1)}`).join("") }));
      else for (const i of usable) {
        if (s.error) {
          const half = s.error[i];
          group.append(svgNode("line", { class: "whisker", x1: sx(s.x[i]), x2: sx(s.x[i]), y1: sy(Math.max(s.y[i] - half, yAxis.log ? yLow : -Infinity)), y2: sy(s.y[i] + half) }));
        }
        const dot = svgNode("circle", { class: "dot", cx: sx(s.x[i]).toFixed(1), cy: sy(s.y[i]).toFixed(1), r: s.radius || 2.4 });
        if (s.colours) dot.setAttribute("style", `fill:${s.colours[i]};opacity:1;stroke:var(--line);stroke-width:.5`);
        if (s.titles) dot.append(svgNode("title", {}, s.titles[i]));
        group.append(dot);
      }
      svg.append(group);
    }
    svg.append(svgNode("rect", { class: "frame", x: margin.left, y: margin.top, width: width - margin.left - margin.right, height: height - margin.top - margin.bottom }),
      svgNode("text", { x: (margin.left + width - margin.right) / 2, y: height - 6, "text-anchor": "middle" }, xAxis.label),
      svgNode("text", { transform: `translate(13 ${(margin.top + height - margin.bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, yAxis.label));
    const names = series.filter((s) => s.name);
    return make("div", { class: "chartbox" }, make("h3", {}, title),
      names.length ? make("div", { class: "legend small" }, ...names.map((s) => make("span", { class: s.style || "first" }, make("span", { class: "key" }), s.name))) : null,
      svg, note ? make("p", { class: "soft small" }, note) : null);
  }

  function diverging(value, largest) {
    const stops = [[33, 102, 172], [146, 197, 222], [247, 247, 247], [244, 165, 130], [178, 24, 43]];
    const where = (Math.min(1, Math.max(-1, value / largest)) + 1) * 2;
    const i = Math.min(3, Math.floor(where)), part = where - i;
    return `rgb(${stops[i].map((c, k) => Math.round(c + (stops[i + 1][k] - c) * part)).join(",")})`;
  }

  function cellTable(title, values, errors, note) {
    const flat = values.flat().filter(known);
    if (!flat.length) return make("div", {}, make("h3", {}, title), missing("No cell has enough source-free pixels."));
    const typical = errors.flat().filter(known).sort((a, b) => a - b);
    const largest = Math.max(...flat.map((v) => Math.abs(v - 1)), 5 * typical[Math.floor(typical.length / 2)], 0.02);
    const body = make("tbody");
    for (let j = values.length - 1; j >= 0; j--) {
      body.append(make("tr", {}, ...values[j].map((value, i) => {
        const loud = known(value) && Math.abs(value - 1) / largest > 0.72;
        return make("td", {
          style: known(value) ? `background:${diverging(value - 1, largest)}${loud ? ";color:#fff" : ""}` : "background:var(--unknown-ground);color:var(--soft)",
          title: known(value) ? `${value.toFixed(4)} ± ${errors[j][i].toFixed(4)}` : "too few pixels",
        }, known(value) ? value.toFixed(3) : "–");
      })));
    }
    return make("div", {}, make("h3", {}, title), make("table", { class: "cells plain", "aria-label": title }, body), make("p", { class: "soft small" }, note || `Typical error ${number(typical[Math.floor(typical.length / 2)], 2)}. Top row: largest y.`));
  }

  // ---- noise ---------------------------------------------------------------------------------

  (() => {
    const section = byId("noise");
    section.append(heading("noise", "Noise"));
    const noise = data.noise;
    let parts = [];
    if (!noise) { section.append(missing("The noise could not be measured; the notes at the top say why.")); }
    else {
      section.append(make("p", {}, `Measured on ${count(noise.pixels, "source-free pixel")} of ${whole.format(noise.total)}${noise.filter ? `, filtered with ${noise.filter}` : ""}.`));
      const rows = data.kind === "score" ? [
        ["variance of S/√V", "pixel_variance_ratio"], ["mean of S/√V", "significance_mean"], ["variance of a pixel", "pixel_variance"], ["variance plane, mean", "variance_plane"]] : [
        ["PSF-filtered variance", "filtered_variance_ratio"], ["pixel variance / plane", "pixel_variance_ratio"], ["neighbours' correlation", "neighbour_covariance"], ["variance of a pixel", "pixel_variance"], ["variance plane", "variance_plane"]];
      const cell = (values, key) => values ? measured(values[key], values[`${key}_error`]) : "";
      const body = make("tbody", {}, ...rows.map(([label, key]) => make("tr", {}, make("td", { class: "text" }, label),
        noise.before ? make("td", {}, cell(noise.before, key)) : null, make("td", {}, cell(noise.after, key)))));
      const numbers = make("div", {}, make("h3", {}, "Numbers"), make("table", { class: "plain numbers" },
        make("thead", {}, make("tr", {}, make("th", { class: "text" }, ""), noise.before ? make("th", {}, "before") : null, make("th", {}, noise.before ? "after" : "value"))), body),
        noise.before ? make("p", { class: "soft small" }, "Before the correction, with the same variance plane; in the middle of the frame.") : null);
      const maps = [];
      if (noise.map.filtered_variance_ratio) maps.push(cellTable("PSF-filtered variance ratio over the frame", noise.map.filtered_variance_ratio, noise.map.filtered_variance_ratio_error));
      maps.push(cellTable(data.kind === "score" ? "Variance of S/√V over the frame" : "Pixel variance / plane over the frame", noise.map.pixel_variance_ratio, noise.map.pixel_variance_ratio_error));
      if (noise.autocorrelation) numbers.append(make("h3", { style: "margin-top:.5rem" }, "Autocorrelation"),
        make("div", { style: "display:flex;gap:.7rem;align-items:end" },
          make("img", { class: "map", src: noise.autocorrelation.src, alt: "Map of the autocorrelation, lag 0 in the middle" }),
          make("p", { class: "soft small" }, `Lags to ±${noise.autocorrelation.reach} pixels; red and blue: ±${number(noise.autocorrelation.largest, 2)}; lag 0 is left out.`)));
      section.append(make("div", { class: "charts" }, numbers, ...maps));
      const curves = [];
      if (noise.power.before) curves.push({ kind: "line", x: noise.power.frequency, y: noise.power.before, name: "before the correction", style: "second" });
      curves.push({ kind: "line", x: noise.power.frequency, y: noise.power.after, name: curves.length ? "after" : "", style: "first" });
      parts = [
        chart("Power spectrum", { label: "frequency [cycles / pixel]", low: 0, high: 0.5 }, { label: "power / that of white noise", low: 0 }, curves,
          { lines: [1], note: data.kind === "score" ? "A score is filtered with the PSF: it has no power at high frequencies." : "White noise is flat at 1." }),
        chart("Pixels over σ", { label: "pixel / σ", low: -6, high: 6 }, { label: "pixels", log: true, low: 0.5 },
          [{ kind: "line", x: noise.histogram.x, y: noise.histogram.gaussian, name: "unit Gaussian", style: "third" },
            { kind: "dots", x: noise.histogram.x, y: noise.histogram.counts, name: "source-free pixels", style: "first" }]),
      ];
    }
    const variance = data.variance;
    if (variance && variance.series.some((s) => s.variance.length)) {
      const styles = ["first", "second"];
      const series = variance.series.map((s, i) => ({ kind: "dots", x: s.variance, y: s.ratio, error: s.error, name: s.name, style: styles[i], radius: 3.2,
        titles: s.variance.map((v, k) => `variance ${number(v)}: ${number(s.ratio[k])} ± ${number(s.error[k], 2)}, ${count(s.pixels[k], "pixel")}`) }));
      const extremes = variance.series.flatMap((s) => s.ratio.flatMap((r, k) => [r - s.error[k], r + s.error[k]]));
      const lowest = Math.min(0.95, ...extremes), highest = Math.max(1.05, ...extremes);
      parts.push(
        chart("Variance calibration", { label: `variance plane${data.unit ? ` [${data.unit}²]` : ""}`, log: true }, { label: "mean square of pixel / σ", low: lowest - 0.03 * (highest - lowest), high: highest + 0.03 * (highest - lowest) }, series.reverse(),
          { lines: [1], band: [0.97, 1.03], note: "1 where the variance plane holds, whatever the brightness. Clean pixels include sources: what the kernel leaves of them, and what varies, adds to the scatter at large variances." }));
    }
    section.append(make("div", { class: "charts", style: "margin-top:.8rem" }, ...parts));
  })();

  // ---- stars ---------------------------------------------------------------------------------

  (() => {
    const section = byId("stars");
    section.append(heading("stars", "Stars"));
    const stars = data.stars;
    if (!stars) { section.append(missing("The file does not say which stars its kernel was fitted to (extension STARS of whitediff subtract).")); return; }
    section.append(make("p", {}, `Of ${count(stars.total, "source")} on the science image, ${whole.format(stars.offered)} were offered to the fit of the kernel and ${whole.format(stars.used)} used.`));
    const most = Math.max(...stars.reasons.map((r) => r[1]));
    const reasons = make("div", {}, make("h3", {}, "What became of them"), make("table", { class: "plain" }, make("tbody", {}, ...stars.reasons.map(([reason, n]) => make("tr", {},
      make("td", { class: "text wrap" }, reason), make("td", {}, whole.format(n)),
      make("td", { class: "text", style: "width:40%" }, make("span", { style: `display:inline-block;height:.7em;border-radius:2px;background:var(${reason === "used" ? "--good" : "--third"});width:${Math.max(1, 100 * n / most)}%` })))))));
    const group = (want) => stars.x.map((_, i) => i).filter(want);
    const pick = (indices, name, style) => ({ kind: "dots", x: indices.map((i) => stars.x[i]), y: indices.map((i) => stars.y[i]), name, style, radius: 2.8,
      titles: indices.map((i) => `x ${stars.x[i]}, y ${stars.y[i]}\nS/N ${stars.signal_to_noise[i]}${known(stars.chi2[i]) ? `, χ² ${stars.chi2[i]}` : ""}\n${stars.reason[i]}`) });
    const xAxis = { label: "x [pixel]", low: x0, high: x0 + nx }, yAxis = { label: "y [pixel]", low: y0, high: y0 + ny };
    const field = chart("Where they are", xAxis, yAxis, [
      pick(group((i) => !stars.candidate[i]), "not offered", "third"),
      pick(group((i) => stars.candidate[i] && stars.reason[i] === "used"), "used", "first"),
      pick(group((i) => stars.candidate[i] && stars.reason[i] !== "used"), "rejected by the fit", "second")],
    { square: true, note: stars.shown < stars.total ? `The ${whole.format(stars.shown)} brightest.` : "" });
    const charts = make("div", { class: "charts" }, reasons, field);
    section.append(charts);
    const left = stars.residuals;
    if (!left || !left.x.length) { section.append(missing("No residuals could be measured at the stars: that needs a difference with its PSF.")); return; }
    const select = (kind, values) => left.kind.map((k, i) => i).filter((i) => left.kind[i] === kind).map((i) => values[i]);
    const titles = left.x.map((x, i) => `x ${x}, y ${left.y[i]}\n${number(left.pull[i], 3)}σ, ${number(100 * left.fraction[i], 2)} % of its flux\n${left.reason[i] || "used"}`);
    const kinds = [["other", "not offered", "third"], ["used", "used", "first"], ["rejected", "rejected by the fit", "second"]].filter(([kind]) => left.kind.includes(kind));
    const reach = Math.max(6, Math.min(40, 1.1 * [...left.pull].map(Math.abs).sort((a, b) => a - b)[Math.floor(0.98 * (left.pull.length - 1))]));
    const byKind = (values) => kinds.map(([kind, name, style]) => ({ kind: "dots", x: select(kind, left.magnitude), y: select(kind, values), name, style, titles: select(kind, titles) }));
    const percent = left.fraction.map((f) => 100 * f);
    const widest = Math.max(1, Math.min(50, 1.1 * [...percent].map(Math.abs).sort((a, b) => a - b)[Math.floor(0.9 * (percent.length - 1))]));
    const magnitude = { label: left.calibrated ? "magnitude of the star" : "magnitude of the star, −2.5 log₁₀ flux" };
    charts.append(
      chart("What is left over the field", xAxis, yAxis, [{ kind: "dots", x: left.x, y: left.y, radius: 3.6, titles, colours: left.pull.map((pull) => diverging(pull, 5)) }], { square: true, note: "Flux in the difference over its error. Blue: −5σ or less; red: +5σ or more." }),
      chart("What is left of stars, over its error", magnitude, { label: "flux in the difference / error", low: -reach, high: reach }, byKind(left.pull), { lines: [0], band: [-3, 3], note: "Beyond the frame: drawn at its edge. Variable stars stand out, too." }),
      chart("What is left of stars, of their flux", magnitude, { label: "flux in the difference / star [%]", low: -widest, high: widest }, byKind(percent), { lines: [0] }));
    const stamps = data.image.stamps;
    if (stamps.worst_stars.length && data.image.planes.some((plane) => plane.stamps)) {
      section.append(make("h3", { style: "margin-top:.8rem" }, "The stars that stand out most"), make("div", { class: "gallery" }, ...stamps.worst_stars.map((star, k) => {
        const show = () => { lookAt(left.x[star], left.y[star]); byId("images").scrollIntoView({ behavior: "smooth" }); };
        return make("figure", { tabindex: 0, role: "button", on: { click: show, keydown: (event) => { if (event.key === "Enter") show(); } } },
          ...cutouts(stamps.first_star + k, 62), make("figcaption", {}, `${signed(left.pull[star], 1)}σ, ${number(100 * left.fraction[star], 2)} % (${left.kind[star] === "other" ? left.reason[star] : left.kind[star]})`));
      })));
    }
  })();

  // ---- kernel and PSF ------------------------------------------------------------------------

  (() => {
    const section = byId("kernel");
    section.append(heading("kernel", "Kernel and PSF over the field"));
    const grid = (title, part, note, name) => {
      if (!part) return make("div", {}, make("h3", {}, title), missing(`The file has no ${name}.`));
      return make("div", {}, make("h3", {}, title), make("div", { class: "stamps", style: `grid-template-columns:repeat(${part.rows[0].length},1fr);max-width:27rem` },
        ...part.rows.flat().map((cell) => make("figure", {}, cell.src ? make("img", { src: cell.src, alt: `${name}, ${cell.label}` }) : null, make("figcaption", {}, cell.label)))),
      make("p", { class: "soft small" }, note + (part.constant ? " It is the same everywhere." : "")));
    };
    const kernel = data.kernels, psf = data.psfs;
    section.append(make("div", { class: "columns" },
      grid("Matching kernel", kernel, kernel ? `${kernel.side} × ${kernel.side} pixels, with their sums; red: positive, blue: negative, inverse hyperbolic sine. The ${data.convolved || "convolved image"} was convolved with it.` : "", "kernel"),
      grid(`PSF of the ${data.kind}`, psf, psf ? `${psf.side} × ${psf.side} pixels, with full widths at half maximum in pixels; inverse hyperbolic sine, linear up to 1/200 of the peak.` : "", "PSF")));
  })();

  // ---- run -----------------------------------------------------------------------------------

  (() => {
    const section = byId("run");
    const run = data.run;
    section.append(heading("run", "Run"));
    const plain = (rows, heads) => make("table", { class: "plain" }, heads ? make("thead", {}, make("tr", {}, ...heads.map((h, i) => make("th", { class: i === heads.length - 1 && i ? null : "text" }, h)))) : null,
      make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((cell, i) => make("td", { class: i === row.length - 1 && i && heads ? null : "text wrap" }, cell))))));
    const columns = make("div", { class: "columns" });
    columns.append(make("div", {}, make("h3", {}, "Files"), plain(data.files.map((file) => [file.what, file.name]))));
    const record = make("div", {}, make("h3", {}, "Warnings"));
    if (!run.recorded) record.append(missing("The file has no record of its run (extension LOG)."));
    else if (!run.warnings.length) record.append(make("p", {}, "None."));
    else for (const warning of run.warnings) record.append(make("p", { class: "note" }, warning));
    if (run.recorded) {
      record.append(make("h3", {}, "Options"), make("p", {}, run.options.length ? make("code", {}, run.options.join(" ")) : "All as they are by default."));
    }
    columns.append(record);
    if (run.stages.length) {
      const total = run.stages.reduce((sum, stage) => sum + stage.seconds, 0);
      columns.append(make("div", {}, make("h3", {}, "Times"), plain([...run.stages.map((stage) => [stage.name, stage.seconds.toFixed(2)]), ["together", total.toFixed(2)]], ["stage", "seconds"]),
        make("p", { class: "soft small" }, "Until this file was written.")));
    }
    section.append(columns, make("details", {}, make("summary", {}, `Parameters and results in the header (${run.cards.length})`),
      make("table", { class: "plain" }, make("tbody", {}, ...run.cards.map((card) => make("tr", {}, make("td", { class: "text" }, make("code", {}, card.card)), make("td", { class: "text wrap" }, card.value), make("td", { class: "text wrap soft" }, card.comment)))))),
    make("p", { class: "soft small", style: "margin-top:.8rem" }, `Made by whitediff ${data.version}.`));
  })();

  // What tests and curious people look at.
  window.whitediffReport = { view, data, choose, lookAt };
})();
