"use strict";
// What the page does: draws the charts, says each curve's value under the pointer, follows light and dark, zooms all charts at once.

function poroNumber(value, kind) {
  if (value === null || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  const trim = (text) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);
  const scaled = (units, step) => {
    let n = 0;
    for (let rest = size; rest >= step * 0.99995 && n < units.length - 1; rest /= step) n += 1;
    return trim((value / step ** n).toPrecision(4)) + units[n];
  };
  if (kind === "percent") return trim((value * 100).toPrecision(4)) + " %";
  if (kind === "bytes") return scaled([" B", " kB", " MB", " GB", " TB"], 1000);
  if (kind === "seconds") return size && size < 0.1 ? trim((value * 1e3).toPrecision(3)) + " ms" : trim(value.toPrecision(4)) + " s";
  if ((size && size < 1e-3) || size >= 1e15) return value.toExponential(2).replace(/\.?0+e/, "e");
  if (size >= 1e4 || kind === "short") return size < 1 ? trim(value.toPrecision(3)) : scaled(["", " k", " M", " B", " T"], 1000);
  return trim(value.toPrecision(5));
}

const page = JSON.parse(document.getElementById("page-data").textContent);
const figures = () => Bokeh.documents[0].roots();
let axis = page.axis;
let heights = "fit";

function renderers(number, place) {
  const names = ["curve", "mean", "points"].map((kind) => `${kind}-${number}-${place}`);
  return figures()[number].renderers.filter((renderer) => names.includes(renderer.name));
}

function nearest(sorted, wanted) {
  let low = 0, high = sorted.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < wanted) low = middle; else high = middle;
  }
  return wanted - sorted[low] < sorted[high] - wanted ? low : high;
}

function say(number, wanted) {
  const chart = document.querySelector(`[data-chart="${number}"]`);
  let where = null;
  for (const chip of chart.querySelectorAll("[data-curve]")) {
    const own = renderers(number, chip.dataset.curve)[0].data_source.data;
    const at = nearest(own[axis], wanted);
    chip.querySelector("b").textContent = poroNumber(own.value[at], chart.dataset.numbers);
    if (where === null || Math.abs(own[axis][at] - wanted) < Math.abs(where[axis] - wanted)) where = { step: own.step[at], tokens: own.tokens[at] };
  }
  const range = figures()[number].x_range;
  const near = page.marks.filter((mark) => Math.abs(mark[axis] - wanted) < (range.end - range.start) / 150);
  const text = near.length ? near.map((mark) => mark.text).join("; ") : `step ${where.step.toLocaleString("en")}, ${poroNumber(where.tokens, "short")} tokens`;
  const line = chart.querySelector(".at");
  line.textContent = text;
  line.title = text;
}

// A finger moves no pointer before it taps, and bokeh tells no tap while no tool of its own waits for one: so the page listens itself.
function point(number, event) {
  const figure = figures()[number];
  const frame = Bokeh.index.find_one(figure).frame.bbox;
  const share = (event.clientX - event.currentTarget.getBoundingClientRect().left - frame.left) / frame.width;
  const { start, end } = figure.x_range;
  if (share >= 0 && share <= 1) say(number, start + share * (end - start));
}

function sayLast(number) {
  const chart = document.querySelector(`[data-chart="${number}"]`);
  for (const chip of chart.querySelectorAll("[data-curve]")) chip.querySelector("b").textContent = poroNumber(JSON.parse(chip.dataset.last), chart.dataset.numbers);
  chart.querySelector(".at").textContent = "";
}

function visibleValues(number) {
  const figure = figures()[number];
  const { start, end } = figure.x_range;
  const values = [];
  for (const renderer of figure.renderers) {
    if (!renderer.visible || !/^(curve|mean)/.test(renderer.name)) continue;
    const data = renderer.data_source.data;
    data.value.forEach((value, at) => { if (data[axis][at] >= start && data[axis][at] <= end && Number.isFinite(value)) values.push(value); });
  }
  return Float64Array.from(values).sort();
}

// Heights fit what is shown. A few values far off the others leave the picture, unless all are asked for.
function fit(number) {
  const figure = figures()[number];
  const values = visibleValues(number);
  if (!values.length) return;
  const isLog = /Log/.test(figure.y_scale.type);
  const at = (share) => values[Math.round((values.length - 1) * share)];
  const [to, from] = isLog ? [Math.log, Math.exp] : [Number, Number];
  let [low, high] = [to(at(0)), to(at(1))];
  const [usualLow, usualHigh] = [to(at(0.005)), to(at(0.995))];
  const usual = usualHigh - usualLow;
  if (heights === "fit" && usual > 0) {
    if (high - usualHigh > 2 * usual) high = usualHigh + 0.2 * usual;
    if (usualLow - low > 2 * usual) low = usualLow - 0.2 * usual;
  }
  const margin = 0.06 * (high - low) || 0.05 * Math.abs(high) || 1;
  figure.y_range.setv({ start: from(low - margin), end: from(high + margin) });
}

let waiting = false;
function fitAll() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; figures().forEach((figure, number) => fit(number)); });
}

function showAll() {
  const range = figures()[0].x_range;
  const last = page.last[axis];
  range.setv({ bounds: [0, last], min_interval: Math.min(page.least[axis], last) });
  range.setv({ start: 0, end: last });
  fitAll();
}

function chooseAxis(chosen) {
  axis = chosen;
  for (const figure of figures()) {
    for (const renderer of figure.renderers) renderer.glyph.x = { field: axis };
    figure.below[0].axis_label = axis;
  }
  showAll();
}

function chooseMode(mode) {
  const wanted = { zoom: ["BoxZoomTool", "WheelZoomTool"], pan: ["PanTool", "WheelZoomTool"], read: [] }[mode];
  for (const figure of figures()) {
    for (const tool of figure.toolbar.tools) if (/Zoom|Pan/.test(tool.type)) tool.active = wanted.includes(tool.type);
  }
}

function paint() {
  const style = getComputedStyle(document.documentElement);
  const [text, line, grid] = ["--faint", "--line", "--grid"].map((name) => style.getPropertyValue(name).trim());
  for (const figure of figures()) {
    for (const each of [...figure.below, ...figure.left]) {
      each.setv({ major_label_text_color: text, axis_label_text_color: text, axis_line_color: line, major_tick_line_color: line, minor_tick_line_color: null,
        major_label_text_font: "system-ui, sans-serif", axis_label_text_font: "system-ui, sans-serif", axis_label_text_font_style: "normal" });
    }
    for (const each of figure.center) if (/Grid/.test(each.type)) each.grid_line_color = grid;
    for (const tool of figure.toolbar.tools) if (tool.type === "CrosshairTool") tool.line_color = text;
  }
}

function press(buttons, act) {
  for (const button of buttons) {
    button.addEventListener("click", () => {
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      act(button.value);
    });
  }
}

function toggle(button, act) {
  button.addEventListener("click", () => {
    const visible = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(visible));
    act(visible);
  });
}

function listen() {
  press(document.querySelectorAll('[name="axis"]'), chooseAxis);
  press(document.querySelectorAll('[name="mode"]'), chooseMode);
  press(document.querySelectorAll('[name="heights"]'), (chosen) => { heights = chosen; fitAll(); });
  for (const end of ["start", "end"]) figures()[0].x_range.properties[end].change.connect(fitAll);
  document.getElementById("reset").addEventListener("click", showAll);
  for (const button of document.querySelectorAll("[data-mark]")) {
    toggle(button, (visible) => {
      for (const figure of figures()) for (const renderer of figure.renderers) if (renderer.name.endsWith(`-${button.dataset.mark}`)) renderer.visible = visible;
    });
  }
  figures().forEach((figure, number) => {
    for (const chip of document.querySelectorAll(`[data-chart="${number}"] [data-curve]`)) {
      toggle(chip, (visible) => { for (const renderer of renderers(number, chip.dataset.curve)) renderer.visible = visible; fit(number); });
    }
    const place = document.getElementById(figure.name);
    for (const event of ["pointermove", "pointerdown"]) place.addEventListener(event, (at) => point(number, at), { capture: true });
    place.addEventListener("pointerleave", (at) => { if (at.pointerType === "mouse") sayLast(number); });
    figure.on_event("doubletap", showAll);
  });
}

async function begin() {
  Bokeh.set_log_level("error");
  const content = JSON.parse(document.getElementById("charts-data").textContent);
  if (content === null) return;
  await Bokeh.embed.embed_items(content.documents, content.items);
  figures().forEach((figure, number) => sayLast(number));
  paint();
  listen();
  const dark = matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", paint);
  chooseAxis(axis);
  const mode = matchMedia("(pointer: coarse)").matches ? "read" : "zoom";
  document.querySelector(`[name="mode"][value="${mode}"]`).click();
  document.documentElement.dataset.ready = "yes";
}

begin();
