/* Clips: three panels in step. The difference is computed here, from both sprites, which are lossless. */
const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
for (const clip of document.querySelectorAll(".clip")) {
  const { frames, columns, width, height, fps } = Object.fromEntries(
    ["frames", "columns", "width", "height", "fps"].map((key) => [key, Number(clip.dataset[key])]));
  const [original, adversarial] = clip.querySelectorAll("img.sprite");
  const canvases = [...clip.querySelectorAll("canvas")];
  const contexts = canvases.map((canvas) => canvas.getContext("2d", { willReadFrequently: true }));
  const numbers = JSON.parse(clip.querySelector(".numbers").textContent);
  const slider = clip.querySelector(".frame"), gain = clip.querySelector(".gain"), play = clip.querySelector(".play");
  let at = 0, playing = !still && frames > 1, seen = false, last = 0;

  const draw = () => {
    const x = (at % columns) * width, y = Math.floor(at / columns) * height;
    [original, adversarial].forEach((sheet, i) => contexts[i].drawImage(sheet, x, y, width, height, 0, 0, width, height));
    const a = contexts[0].getImageData(0, 0, width, height), b = contexts[1].getImageData(0, 0, width, height);
    const out = contexts[2].createImageData(width, height), factor = Number(gain.value);
    for (let i = 0; i < out.data.length; i += 1)
      out.data[i] = i % 4 === 3 ? 255 : 128 + factor * (b.data[i] - a.data[i]); // the array clamps to 0..255
    contexts[2].putImageData(out, 0, 0);
    slider.value = at;
    clip.querySelector(".at").textContent = numbers[at];
    clip.querySelector(".difference output").textContent = factor;
    // strips may hold other frames than those that are shown: the nearest one is marked
    for (const strip of clip.querySelectorAll(".strip")) {
      const cells = [...strip.children];
      const distances = cells.map((cell) => Math.abs(Number(cell.dataset.frame) - numbers[at]));
      const nearest = distances.indexOf(Math.min(...distances));
      cells.forEach((cell, i) => cell.classList.toggle("now", i === nearest));
    }
  };
  const say = () => { play.textContent = playing ? "pause" : "play"; };
  const tick = (now) => {
    if (playing && seen && !clip.hidden && now - last >= 1000 / fps) {
      last = now;
      at = (at + 1) % frames;
      draw();
    }
    requestAnimationFrame(tick);
  };
  Promise.all([original.decode(), adversarial.decode()]).then(() => {
    [original, adversarial].forEach((sheet) => { sheet.hidden = true; });
    canvases.forEach((canvas) => { canvas.hidden = false; });
    clip.querySelector(".difference").hidden = false;
    clip.querySelector(".controls").hidden = false;
    if (frames === 1) { slider.closest("label").hidden = true; play.hidden = true; }
    slider.addEventListener("input", () => { playing = false; at = Number(slider.value); say(); draw(); });
    gain.addEventListener("input", draw);
    play.addEventListener("click", () => { playing = !playing; say(); });
    say();
    draw();
    clip.dataset.ready = "yes";
    new IntersectionObserver((entries) => { seen = entries.at(-1).isIntersecting; }).observe(clip);
    requestAnimationFrame(tick);
  });
}

/* Filters of clips; a cell of a confusion matrix sets them. */
const filters = [...document.querySelectorAll(".clip-filter")];
const filterClips = () => {
  let count = 0;
  for (const clip of document.querySelectorAll(".clip")) {
    clip.hidden = filters.some((each) => each.value && clip.dataset[each.dataset.key] !== each.value);
    count += !clip.hidden;
  }
  document.getElementById("clip-count").textContent = count === 1 ? "1 clip" : `${count} clips`;
};
filters.forEach((each) => each.addEventListener("change", filterClips));
for (const button of document.querySelectorAll(".to-clips")) {
  button.addEventListener("click", () => {
    for (const each of filters) {
      const wanted = each.dataset.key in button.dataset ? button.dataset[each.dataset.key] : "";
      each.value = [...each.options].some((option) => option.value === wanted) ? wanted : "";
    }
    filterClips();
    const section = document.getElementById("clip-section");
    section.scrollIntoView();
    filters[0].focus({ preventScroll: true });
  });
}

/* Corruptions: a cell shows the video under it. */
const pictures = document.getElementById("corrupted-pictures");
if (pictures) {
  const known = JSON.parse(pictures.textContent);
  const buttons = [...document.querySelectorAll("[data-picture]")];
  for (const button of buttons) {
    button.addEventListener("click", () => {
      const [address, predicted] = known[button.dataset.picture];
      const name = button.dataset.picture.replace(/-(\d)$/, ", severity $1");
      buttons.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
      const picture = document.getElementById("corrupted-picture");
      picture.src = address;
      picture.alt = name;
      document.getElementById("corrupted-text").textContent = `${name}: ${predicted}`;
      document.getElementById("corrupted-view").hidden = false;
    });
  }
}

for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", async () => {
    const text = document.getElementById(button.dataset.from).textContent;
    // a file from the disk may be refused the clipboard: then the text is selected
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "copied";
    } catch {
      getSelection().selectAllChildren(document.getElementById(button.dataset.from));
    }
  });
}
