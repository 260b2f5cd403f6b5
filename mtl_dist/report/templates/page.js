"use strict";
// Read-outs over charts, and a button for light and dark mode. The page is complete without them.

function nearest(steps, step) {
  let low = 0, high = steps.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (steps[middle] < step) low = middle; else high = middle;
  }
  return step - steps[low] <= steps[high] - step ? low : high;
}

function element(name, className, text) {
  const made = document.createElement(name);
  made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function swatch(classes) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg"), path = document.createElementNS(space, "path");
  svg.setAttribute("viewBox", "0 0 22 10");
  path.setAttribute("d", "M1 5H21");
  path.setAttribute("class", classes);
  svg.append(path);
  return svg;
}

for (const holder of document.querySelectorAll(".chart > script")) {
  const { total, lines } = JSON.parse(holder.textContent);
  const plot = holder.parentElement.querySelector(".plot");
  const cursor = element("div", "cursor"), tip = element("div", "tip");
  const show = (event) => {
    const box = plot.getBoundingClientRect();
    const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    const found = lines.filter((line) => line.x.length).map((line) => [line, nearest(line.x, share * total)]);
    if (!found.length) return;
    const distance = ([line, index]) => Math.abs(line.x[index] - share * total);
    const step = found.reduce((one, other) => (distance(other) < distance(one) ? other : one));
    const at = step[0].x[step[1]];
    cursor.style.left = `${(100 * at) / total}%`;
    tip.replaceChildren(element("div", "", `step ${at.toLocaleString("en")}`));
    for (const [line, index] of found) {
      // A line that was measured at another step shows that step.
      const value = line.y[index] === null ? "–" : String(line.y[index]);
      const key = element("div", "key");
      key.append(swatch(line.c), line.n + (line.x[index] === at ? "" : ` (${line.x[index].toLocaleString("en")})`));
      key.append(element("b", "", value));
      tip.append(key);
    }
    plot.append(cursor, tip);
    const left = at / total < 0.5;
    tip.style.left = left ? `calc(${(100 * at) / total}% + 10px)` : "auto";
    tip.style.right = left ? "auto" : `calc(${100 - (100 * at) / total}% + 10px)`;
  };
  const hide = () => { cursor.remove(); tip.remove(); };
  plot.addEventListener("pointermove", show);
  plot.addEventListener("pointerdown", show);
  plot.addEventListener("pointerleave", hide);
}

const root = document.documentElement;
const toggle = element("button", "", "light / dark");
toggle.type = "button";
toggle.addEventListener("click", () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
document.querySelector("nav").append(toggle);
