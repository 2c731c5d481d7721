// Words of the article that stand out too little from what is behind them: {colours and ratio: the first words}.
// The ratio is WCAG's, which asks for 4.5. Text drawn in a picture (svg) is not looked at.
() => {
  const pen = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgba = (color) => { // whatever way the style writes it
    pen.clearRect(0, 0, 1, 1);
    pen.fillStyle = color;
    pen.fillRect(0, 0, 1, 1);
    return [...pen.getImageData(0, 0, 1, 1).data];
  };
  const over = (top, below) => [0, 1, 2].map((i) => (top[i] * top[3] + below[i] * (255 - top[3])) / 255);
  const ground = (e) => (e ? over(rgba(getComputedStyle(e).backgroundColor), ground(e.parentElement)) : [255, 255, 255]);
  const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const found = {}, article = document.querySelector("article"); // the page of a search has none
  if (!article) return found;
  const words = document.createTreeWalker(article, NodeFilter.SHOW_TEXT);
  while (words.nextNode()) {
    const text = words.currentNode.textContent.trim(), e = words.currentNode.parentElement;
    const unseen = e.closest("svg, script, style, .katex-mathml") || !e.checkVisibility({ visibilityProperty: true });
    if (!text || unseen) continue;
    const below = ground(e), ink = over(rgba(getComputedStyle(e).color), below);
    const [low, high] = [light(ink), light(below)].sort((a, b) => a - b);
    const ratio = ((high + 0.05) / (low + 0.05)).toFixed(2);
    if (ratio < 4.5) found[`${ink.map(Math.round)} on ${below.map(Math.round)}: ${ratio}`] ??= text.slice(0, 60);
  }
  return found;
}
