// Texts and edges whose contrast is below what WCAG 2.2 AA asks for (1.4.3, 1.4.11), with everything that may be shown.
document.querySelectorAll("[hidden], details").forEach(one => { one.hidden = false; one.open = true; });
const channels = (colour) => colour.match(/[\d.]+/g).map(Number);
const luminance = (colour) => {
  const [r, g, b] = channels(colour).map((one) => one / 255).map((one) => one <= .04045 ? one / 12.92 : ((one + .055) / 1.055) ** 2.4);
  return .2126 * r + .7152 * g + .0722 * b;
};
const behind = (node) => {
  const colour = getComputedStyle(node).backgroundColor;
  return channels(colour)[3] === 0 ? behind(node.parentElement) : colour;
};
const contrast = (one, other) => {
  const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (high + .05) / (low + .05);
};
const found = [];
const note = (node, needed, one, other) => {
  if (contrast(one, other) < needed) found.push([node.outerHTML.slice(0, 80), contrast(one, other), needed]);
};
let texts = 0;
for (const node of document.body.querySelectorAll("*")) {
  if (!node.checkVisibility()) continue;
  const style = getComputedStyle(node);
  if ([...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim()) || node.matches("textarea, select")) {
    note(node, 4.5, style.color, behind(node));
    texts++;
  }
  if (node.matches("textarea, select, input[type=password], .bar, .share")) note(node, 3, style.borderTopColor, behind(node.parentElement));
  if (node.matches(".share b")) note(node, 4.5, style.color, behind(node.previousSibling));
  if (node.matches(".mean")) note(node, 3, style.backgroundColor, behind(node.previousSibling));
  if (node.matches(".score")) note(node, 3, style.borderTopColor, behind(node.parentElement));
}
return [texts, found];
