// Small steps on the document. Text from outside goes in as text only.

export const $ = (id) => document.getElementById(id);

/** An element with properties and children: make("b", {className: "x", ariaLabel: "y"}, "text", child). */
export function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("aria")) node.setAttribute(`aria-${name.slice(4).toLowerCase()}`, value);
    else if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

/** Writes only what differs: an unchanged page costs no layout. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function setAttribute(node, name, value) {
  if (value === null || value === undefined) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

export function setStyle(node, name, value) {
  if (node.style[name] !== value) node.style[name] = value;
}

/** Brings `parent` to one child for each of `items`: made by create(), filled by fill(child, item). */
export function each(parent, items, create, fill) {
  while (parent.children.length > items.length) parent.lastElementChild.remove();
  for (let i = 0; i < items.length; i += 1) {
    if (i >= parent.children.length) parent.append(create());
    fill(parent.children[i], items[i]);
  }
}
